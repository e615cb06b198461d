#define _GNU_SOURCE
#include "user.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIELDS = 7 };

/* A number as uid or gid; (uid_t)-1 means "unchanged" to the kernel and is no one's. */
static bool parse_id(const char *text, unsigned *id)
{
	char *end;
	if (*text < '0' || *text > '9')
		return false;
	unsigned long long number = strtoull(text, &end, 10);
	if (*end || number >= 0xffffffffull)
		return false;
	*id = number;
	return true;
}

/* Read the next line into fields split at `:`; returns their count, or -1 at the end. */
static int next_entry(FILE *file, char **line, size_t *size, char *fields[FIELDS])
{
	if (getline(line, size, file) < 0)
		return -1;
	(*line)[strcspn(*line, "\r\n")] = 0;
	int count = 0;
	char *rest = *line;
	while (count < FIELDS && rest)
		fields[count++] = strsep(&rest, ":");
	return count;
}

/* The passwd entry named so or, for a number, with that uid. */
static bool find_user(const char *wanted, const char *path, struct user *user, char *name, size_t name_size)
{
	FILE *file = fopen(path, "re");
	char *line = NULL, *field[FIELDS];
	size_t size = 0;
	unsigned wanted_id = 0, uid, gid;
	bool numeric = parse_id(wanted, &wanted_id), found = false;
	if (file == NULL)
		return false;
	for (int count; !found && (count = next_entry(file, &line, &size, field)) >= 0;) {
		if (count < 6 || !parse_id(field[2], &uid) || !parse_id(field[3], &gid))
			continue;
		if (strcmp(field[0], wanted) != 0 && !(numeric && uid == wanted_id))
			continue;
		found = true;
		user->uid = uid;
		user->gid = gid;
		snprintf(name, name_size, "%s", field[0]);
		snprintf(user->home, sizeof user->home, "%s", *field[5] ? field[5] : "/");
	}
	free(line);
	fclose(file);
	return found;
}

static bool find_group(const char *wanted, const char *path, gid_t *gid)
{
	FILE *file = fopen(path, "re");
	char *line = NULL, *field[FIELDS];
	size_t size = 0;
	unsigned id;
	bool found = false;
	if (file == NULL)
		return false;
	for (int count; !found && (count = next_entry(file, &line, &size, field)) >= 0;)
		if (count >= 3 && strcmp(field[0], wanted) == 0 && parse_id(field[2], &id)) {
			*gid = id;
			found = true;
		}
	free(line);
	fclose(file);
	return found;
}

static bool has_member(char *members, const char *name)
{
	for (char *member; (member = strsep(&members, ","));)
		if (strcmp(member, name) == 0)
			return true;
	return false;
}

static void find_memberships(const char *name, const char *path, struct user *user)
{
	FILE *file = fopen(path, "re");
	char *line = NULL, *field[FIELDS];
	size_t size = 0;
	unsigned id;
	if (file == NULL)
		return;
	for (int count; (count = next_entry(file, &line, &size, field)) >= 0 && user->group_count < GROUPS_MAX;)
		if (count >= 4 && parse_id(field[2], &id) && has_member(field[3], name))
			user->groups[user->group_count++] = id;
	free(line);
	fclose(file);
}

int user_resolve(const char *wanted, const char *passwd, const char *group, struct user *user)
{
	char text[256], name[256] = "";
	if (strlen(wanted) >= sizeof text)
		return EINVAL;
	strcpy(text, *wanted ? wanted : "0");
	char *wanted_group = strchr(text, ':');
	if (wanted_group)
		*wanted_group++ = 0;
	*user = (struct user){.home = "/"};
	unsigned id;
	if (!find_user(text, passwd, user, name, sizeof name)) {
		if (!parse_id(text, &id))
			return ENOENT;
		user->uid = id;
		if (id == 0)
			strcpy(user->home, "/root");
	}
	if (wanted_group && *wanted_group) {
		/* An explicit group replaces the memberships, as `docker run --user` has it. */
		if (!find_group(wanted_group, group, &user->gid)) {
			if (!parse_id(wanted_group, &id))
				return ENOENT;
			user->gid = id;
		}
		return 0;
	}
	user->groups[user->group_count++] = user->gid;
	if (*name)
		find_memberships(name, group, user);
	return 0;
}
