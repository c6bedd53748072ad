/* The version, to the preprocessor and at run time, and the texts of codes. */
#include "check.h"

#if DAXTIER_VERSION_NUMBER < 0x000100
#error "the version number cannot be compared"
#endif
#if DAXTIER_VERSION_MAJOR != 0 || DAXTIER_VERSION_MINOR < 1
#error "the parts of the version cannot be compared"
#endif

int main(void)
{
    char text[32];
    int code;

    snprintf(text, sizeof text, "%d.%d.%d", DAXTIER_VERSION_MAJOR, DAXTIER_VERSION_MINOR, DAXTIER_VERSION_PATCH);
    CHECK(strcmp(daxtier_version(), text) == 0);
    CHECK(daxtier_version_number() == DAXTIER_VERSION_NUMBER);

    CHECK(strcmp(daxtier_last_error(), "") == 0);
    CHECK(strcmp(daxtier_strerror(DAXTIER_OK), "success") == 0);
    CHECK(strcmp(daxtier_strerror(DAXTIER_EORDER), daxtier_strerror(DAXTIER_EOFFSET)) != 0);
    for (code = 1; code > -2000; code--)
        CHECK(daxtier_strerror(code)[0] != '\0');
    return 0;
}
