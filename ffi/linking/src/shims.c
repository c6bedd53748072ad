/* Functions that glibc before 2.33 had in its static part (libc_nonshared.a): the stat family, which called the
   versioned __xstat family of the shared part. That family is still in every later glibc. */
#include <sys/stat.h>
#include <sys/types.h>

#if defined(__x86_64__) || defined(__powerpc64__) || defined(__s390x__)
#define STAT_VERSION 1
#else
#define STAT_VERSION 0
#endif

struct stat64;
int __xstat64(int version, const char *path, struct stat64 *out);
int __lxstat64(int version, const char *path, struct stat64 *out);
int __fxstat64(int version, int fd, struct stat64 *out);
int __fxstatat64(int version, int fd, const char *path, struct stat64 *out, int flags);
int __xstat(int version, const char *path, struct stat *out);
int __lxstat(int version, const char *path, struct stat *out);
int __fxstat(int version, int fd, struct stat *out);
int __fxstatat(int version, int fd, const char *path, struct stat *out, int flags);

int stat64(const char *path, struct stat64 *out) { return __xstat64(STAT_VERSION, path, out); }
int lstat64(const char *path, struct stat64 *out) { return __lxstat64(STAT_VERSION, path, out); }
int fstat64(int fd, struct stat64 *out) { return __fxstat64(STAT_VERSION, fd, out); }
int fstatat64(int fd, const char *path, struct stat64 *out, int flags)
{
    return __fxstatat64(STAT_VERSION, fd, path, out, flags);
}
int stat(const char *path, struct stat *out) { return __xstat(STAT_VERSION, path, out); }
int lstat(const char *path, struct stat *out) { return __lxstat(STAT_VERSION, path, out); }
int fstat(int fd, struct stat *out) { return __fxstat(STAT_VERSION, fd, out); }
int fstatat(int fd, const char *path, struct stat *out, int flags)
{
    return __fxstatat(STAT_VERSION, fd, path, out, flags);
}
