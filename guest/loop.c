#define _GNU_SOURCE
#include "loop.h"

#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS_PER_TURN = 32 };

struct waste {
	void *object;
	struct waste *next;
};

static int epoll_fd = -1;
static struct timer *timers;
static struct waste *wastes;

bool loop_start(void)
{
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	return epoll_fd >= 0;
}

bool source_add(struct source *source, int fd, void (*on_event)(struct source *, uint32_t))
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = source};
	source->fd = fd;
	source->on_event = on_event;
	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

void source_close(struct source *source)
{
	if (source->fd < 0)
		return;
	/* Removed by hand: a forked child may still share the open file, and epoll would go on naming a dead object. */
	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
	close(source->fd);
	source->fd = -1;
}

int64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void timer_clear(struct timer *timer)
{
	if (!timer->armed)
		return;
	for (struct timer **at = &timers; *at; at = &(*at)->next)
		if (*at == timer) {
			*at = timer->next;
			break;
		}
	timer->armed = false;
}

void timer_set(struct timer *timer, int64_t delay_ms, void (*on_time)(struct timer *))
{
	timer_clear(timer);
	timer->armed = true;
	timer->due_ms = now_ms() + delay_ms;
	timer->on_time = on_time;
	struct timer **at = &timers;
	while (*at && (*at)->due_ms <= timer->due_ms)
		at = &(*at)->next;
	timer->next = *at;
	*at = timer;
}

static int wait_ms(bool busy)
{
	if (busy)
		return 0;
	if (timers == NULL)
		return -1;
	int64_t rest = timers->due_ms - now_ms();
	return rest < 0 ? 0 : rest > 60000 ? 60000 : (int)rest;
}

void loop_free(void *object)
{
	struct waste *waste = malloc(sizeof *waste);
	if (waste == NULL)
		return; /* rather leak than let an event name freed memory */
	waste->object = object;
	waste->next = wastes;
	wastes = waste;
}

static void empty_waste(void)
{
	while (wastes) {
		struct waste *waste = wastes;
		wastes = waste->next;
		free(waste->object);
		free(waste);
	}
}

void loop_turn(bool busy)
{
	struct epoll_event events[EVENTS_PER_TURN];
	int count = epoll_wait(epoll_fd, events, EVENTS_PER_TURN, wait_ms(busy));
	for (int i = 0; i < count; i++) {
		struct source *source = events[i].data.ptr;
		if (source->fd >= 0)
			source->on_event(source, events[i].events);
	}
	while (timers && timers->due_ms <= now_ms()) {
		struct timer *timer = timers;
		timer_clear(timer);
		timer->on_time(timer);
	}
	empty_waste();
}
