/* One thread, one epoll: descriptors, timers, and frees that wait until no event can still name the object. */
#ifndef PRIMORDIA_LOOP_H
#define PRIMORDIA_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

/* A descriptor in the loop, owned by it; -1 when closed. Events are edge-triggered: use it until EAGAIN. */
struct source {
	int fd;
	void (*on_event)(struct source *source, uint32_t events);
};

struct timer {
	bool armed;
	int64_t due_ms;
	void (*on_time)(struct timer *timer);
	struct timer *next;
};

/* The structure that embeds `member`. */
#define OWNER(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

bool loop_start(void);
bool source_add(struct source *source, int fd, void (*on_event)(struct source *, uint32_t));
void source_close(struct source *source);
void timer_set(struct timer *timer, int64_t delay_ms, void (*on_time)(struct timer *));
void timer_clear(struct timer *timer);
int64_t now_ms(void);

/* free() at the end of this turn of the loop. */
void loop_free(void *object);

/* Wait for events (not at all when `busy`) and serve them. */
void loop_turn(bool busy);

#endif
