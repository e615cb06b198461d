/* What the host may ask for: each OPEN names a kind, and the kind's function takes the stream from there. */
#ifndef PRIMORDIA_CALLS_H
#define PRIMORDIA_CALLS_H

#include "channel.h"

/* Serve an OPEN of the host; `full`: refuse it, too many streams are open. */
void call_open(uint32_t id, const struct params *params, bool full);

/* Answers without a stream of their own: CLOSE with the parameters given, or REFUSED. */
void call_done(uint32_t id, const struct answer *answer);
__attribute__((format(printf, 3, 4))) void call_refused(uint32_t id, int number, const char *format, ...);

/* exec.c */
void exec_open(uint32_t id, const struct params *params);
void rehearse_open(uint32_t id, const struct params *params);
void job_open(uint32_t id, int (*job)(const char *), const char *argument);

/* program.c: the main program */
void program_start(uint32_t id, const struct params *params);
void program_wait(uint32_t id);
void program_signal(uint32_t id, const struct params *params);
void program_state(uint32_t id);
void program_logs(uint32_t id, const struct params *params);
/* Read what the main program wrote; true when there is more at once. */
bool program_pump(void);
bool program_running(void);
bool program_ended(void);
void program_kill(int number);

/* relay.c, dns.c */
void tcp_open(uint32_t id, const struct params *params);
void unix_open(uint32_t id, const struct params *params);
void stir_open(uint32_t id, const struct params *params);
void listeners_start(void);

/* identify.c, hooks.c, group.c, shutdown.c */
void prepare_open(uint32_t id, const struct params *params);
void identify_open(uint32_t id, const struct params *params);
void release_open(uint32_t id, const struct params *params);
void clock_open(uint32_t id, const struct params *params);
/* Run the programs of the `hook` parameters one after the other, then CLOSE with the answer; REFUSED when one fails. */
void hooks_run(uint32_t id, const struct params *params, const struct answer *answer);
void hosts_open(uint32_t id, const struct params *params);
void freeze_open(uint32_t id, const struct params *params);
void thaw_open(uint32_t id, const struct params *params);
void shutdown_open(uint32_t id, const struct params *params);

/* flush.c */
void sync_open(uint32_t id, const struct params *params);

/* data.c */
void grow_data_open(uint32_t id, const struct params *params);
void freeze_data_open(uint32_t id, const struct params *params);
void thaw_data_open(uint32_t id, const struct params *params);

#endif
