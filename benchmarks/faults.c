/* Loaded before libc (LD_PRELOAD): the n-th write, fsync or open below a folder fails, once or from then on.
   What is to fail is kept in memory that forked processes share, so that the fault can be lifted while they run. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

enum { NONE, WRITE, SYNC, OPEN };
static struct plan {
    atomic_int kind, seen, hits, process;
    int at, error, lasting;
    char below[1024];
} *plan;

int faults_share(void) {
    plan = mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return plan != MAP_FAILED;
}
void faults_arm(int kind, int at, int error, int lasting, const char *below) {
    plan->at = at, plan->error = error, plan->lasting = lasting, plan->seen = 0, plan->hits = 0;
    snprintf(plan->below, sizeof plan->below, "%s", below);
    plan->process = getpid();
    plan->kind = kind;
}
void faults_lift(void) { plan->kind = NONE; }
int faults_seen(void) { return plan->seen; }
int faults_hits(void) { return plan->hits; }

static int fails(const char *path) {
    if (plan->process != getpid() || strncmp(path, plan->below, strlen(plan->below))) return 0;
    int n = atomic_fetch_add(&plan->seen, 1) + 1;
    if (n != plan->at && !(plan->lasting && n > plan->at)) return 0;
    atomic_fetch_add(&plan->hits, 1);
    errno = plan->error;
    return 1;
}
static int fails_on(int kind, int handle) {
    char link[64], path[1024];
    if (!plan || plan->kind != kind) return 0;
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(path);
}
static int fails_at(const char *path) {
    char whole[2048];
    if (!plan || plan->kind != OPEN || !path) return 0;
    if (path[0] != '/' && getcwd(whole, 1024)) {
        strncat(whole, "/", 2);
        strncat(whole, path, 1000);
        return fails(whole);
    }
    return fails(path);
}

#define REAL(name) ((__typeof__(&name))(real_##name ? real_##name : (real_##name = dlsym(RTLD_NEXT, #name))))
#define WRAP(kind, name, parameters, handle, ...)         \
    ssize_t name parameters {                             \
        static void *real_##name;                         \
        if (fails_on(kind, handle)) return -1;            \
        return ((ssize_t(*) parameters)REAL(name))(__VA_ARGS__); \
    }
WRAP(WRITE, write, (int f, const void *b, size_t n), f, f, b, n)
WRAP(WRITE, pwrite, (int f, const void *b, size_t n, off_t o), f, f, b, n, o)
WRAP(WRITE, pwrite64, (int f, const void *b, size_t n, off64_t o), f, f, b, n, o)

#define SYNCS(name)                            \
    int name(int f) {                          \
        static void *real_##name;              \
        if (fails_on(SYNC, f)) return -1;      \
        return REAL(name)(f);                  \
    }
SYNCS(fsync)
SYNCS(fdatasync)

#define OPENS(name)                                            \
    int name(const char *path, int flags, ...) {               \
        static void *real_##name;                              \
        va_list rest;                                          \
        va_start(rest, flags);                                 \
        mode_t mode = va_arg(rest, mode_t);                    \
        va_end(rest);                                          \
        if (fails_at(path)) return -1;                         \
        return REAL(name)(path, flags, mode);                  \
    }
OPENS(open)
OPENS(open64)
