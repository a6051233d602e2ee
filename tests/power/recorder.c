/*
 * A FUSE file system with one file, `img`, which is an image file elsewhere. Every write and flush is also appended to a
 * record log, in the order in which it took effect: a header of four uint64_t (kind, offset, length, nanoseconds since
 * the epoch), then the bytes of a write.
 *
 *     recorder IMAGE LOG MOUNTPOINT
 *
 * It prints "ready" once it is mounted, stays in the foreground, and unmounts itself at SIGTERM.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { WRITE = 1, FLUSH = 2 };

static int image, record_log;
static off_t image_size;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

/* Without a buffer: the size of the log tells at any time what has been recorded. */
static int append(enum kind kind, const char *data, off_t offset, size_t length)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t header[4] = {kind, offset, length, now.tv_sec * UINT64_C(1000000000) + now.tv_nsec};
    struct iovec parts[2] = {{header, sizeof header}, {(void *)data, length}};
    ssize_t wanted = sizeof header + length;
    return writev(record_log, parts, 2) == wanted ? 0 : -EIO;
}

static int on_write(const char *path, const char *data, size_t length, off_t offset, struct fuse_file_info *file)
{
    pthread_mutex_lock(&order);
    ssize_t written = pwrite(image, data, length, offset);
    int result = written < 0 ? -errno : append(WRITE, data, offset, written);
    pthread_mutex_unlock(&order);
    return result < 0 ? result : (int)written;
}

static int on_fsync(const char *path, int data_only, struct fuse_file_info *file)
{
    pthread_mutex_lock(&order);
    int result = append(FLUSH, NULL, 0, 0);
    pthread_mutex_unlock(&order);
    return result;
}

static int on_read(const char *path, char *data, size_t length, off_t offset, struct fuse_file_info *file)
{
    ssize_t got = pread(image, data, length, offset);
    return got < 0 ? -errno : (int)got;
}

static int on_getattr(const char *path, struct stat *attributes, struct fuse_file_info *file)
{
    memset(attributes, 0, sizeof *attributes);
    attributes->st_nlink = 1;
    if (strcmp(path, "/") == 0) {
        attributes->st_mode = S_IFDIR | 0755;
    } else if (strcmp(path, "/img") == 0) {
        attributes->st_mode = S_IFREG | 0600;
        attributes->st_size = image_size;
    } else {
        return -ENOENT;
    }
    return 0;
}

/* The loop device falls back to writing zeros, which are recorded. */
static int on_fallocate(const char *path, int mode, off_t offset, off_t length, struct fuse_file_info *file)
{
    return -EOPNOTSUPP;
}

static void *on_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
    puts("ready");
    fflush(stdout);
    return NULL;
}

static const struct fuse_operations operations = {
    .init = on_init,
    .getattr = on_getattr,
    .read = on_read,
    .write = on_write,
    .fsync = on_fsync,
    .fallocate = on_fallocate,
};

int main(int count, char **arguments)
{
    struct stat attributes;
    if (count != 4) {
        fprintf(stderr, "usage: recorder IMAGE LOG MOUNTPOINT\n");
        return 2;
    }
    image = open(arguments[1], O_RDWR | O_CLOEXEC);
    record_log = open(arguments[2], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (image < 0 || record_log < 0 || fstat(image, &attributes) < 0) {
        perror("recorder");
        return 1;
    }
    image_size = attributes.st_size;
    char *options[] = {arguments[0], arguments[3], "-f", NULL};
    return fuse_main(3, options, &operations, NULL);
}
