// SPDX-License-Identifier: MIT
/*
 * The least that a FUSE filesystem in C can be, with tsmfs' policy of caching: the measure for
 * bench_fs.py. It shows one file at the path that is given first, with directories on the way.
 *
 * cfuse /devices/a/b/file MOUNT-POINT [libfuse options]
 */
#include <errno.h>
#include <fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const char *file_path;
static const char text[] = "tsm0\n";

static int fill(const char *path, struct stat *st)
{
	size_t length = strlen(path);

	memset(st, 0, sizeof(*st));
	st->st_blksize = 4096;
	st->st_ino = length;
	if (strcmp(path, file_path) == 0) {
		st->st_mode = S_IFREG | 0644;
		st->st_nlink = 1;
		st->st_size = 4096;
		return 0;
	}
	if (length == 1 || (strncmp(path, file_path, length) == 0 && file_path[length] == '/')) {
		st->st_mode = S_IFDIR | 0755;
		st->st_nlink = 3;
		return 0;
	}
	return -ENOENT;
}

#if FUSE_USE_VERSION >= 30
static int do_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	(void)fi;
	return fill(path, st);
}

static void *do_init(struct fuse_conn_info *conn, struct fuse_config *config)
{
	(void)conn;
	config->use_ino = 1;
	config->direct_io = 1;
	config->entry_timeout = 1 << 30;
	config->attr_timeout = 0;
	config->negative_timeout = 0;
	return NULL;
}
#else
static int do_getattr(const char *path, struct stat *st)
{
	return fill(path, st);
}
#endif

static int do_open(const char *path, struct fuse_file_info *fi)
{
	struct stat st;

	(void)fi;
	return fill(path, &st);
}

static int do_read(const char *path, char *buffer, size_t size, off_t offset,
		   struct fuse_file_info *fi)
{
	size_t length = sizeof(text) - 1;

	(void)path;
	(void)fi;
	if ((size_t)offset >= length)
		return 0;
	length -= offset;
	if (length > size)
		length = size;
	memcpy(buffer, text + offset, length);
	return length;
}

static int do_release(const char *path, struct fuse_file_info *fi)
{
	(void)path;
	(void)fi;
	return 0;
}

static const struct fuse_operations operations = {
	.getattr = do_getattr,
	.open = do_open,
	.read = do_read,
	.release = do_release,
#if FUSE_USE_VERSION >= 30
	.init = do_init,
#endif
};

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: %s FILE-PATH MOUNT-POINT [OPTION]...\n", argv[0]);
		return 2;
	}
	file_path = argv[1];
	argv[1] = argv[0];
	return fuse_main(argc - 1, argv + 1, &operations, NULL);
}
