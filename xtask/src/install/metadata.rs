//! What other builds read to find the library: a pkg-config file and a CMake package.

use std::path::Path;

/// What a static link needs besides; the compiler adds its own run-time library.
const STATIC_LIBRARIES: &str = "-pthread -ldl -lm";

/// Returns `daxtier.pc`.
pub(super) fn pkg_config(prefix: &Path, libdir: &str) -> String {
    format!(
        "prefix={}
exec_prefix=${{prefix}}
libdir=${{exec_prefix}}/{libdir}
includedir=${{prefix}}/include

Name: daxtier
Description: Folios, tiers and a heap over DRAM and CXL memory
Version: {}
Cflags: -I${{includedir}}
Libs: -L${{libdir}} -ldaxtier
Libs.private: {STATIC_LIBRARIES}
",
        prefix.display(),
        super::VERSION
    )
}

/// Returns `daxtier-config.cmake`. It finds the files from its own place, so the tree may be moved.
pub(super) fn cmake_config(libdir: &str) -> String {
    // PREFIX/libdir/cmake/daxtier: three steps up from the file's folder for each part of libdir beyond the first.
    let up = "/..".repeat(libdir.split('/').filter(|part| !part.is_empty()).count() + 2);
    format!(
        r#"# daxtier for CMake: find_package(daxtier CONFIG REQUIRED)
#   target_link_libraries(program PRIVATE daxtier::daxtier)        the shared library
#   target_link_libraries(program PRIVATE daxtier::daxtier_static) the static one
get_filename_component(_daxtier_prefix "${{CMAKE_CURRENT_LIST_DIR}}{up}" ABSOLUTE)

if(NOT TARGET daxtier::daxtier)
  add_library(daxtier::daxtier SHARED IMPORTED)
  set_target_properties(daxtier::daxtier PROPERTIES
    IMPORTED_LOCATION "${{_daxtier_prefix}}/{libdir}/libdaxtier.so"
    IMPORTED_SONAME "{soname}"
    INTERFACE_INCLUDE_DIRECTORIES "${{_daxtier_prefix}}/include")
endif()

if(NOT TARGET daxtier::daxtier_static)
  add_library(daxtier::daxtier_static STATIC IMPORTED)
  set_target_properties(daxtier::daxtier_static PROPERTIES
    IMPORTED_LOCATION "${{_daxtier_prefix}}/{libdir}/libdaxtier.a"
    INTERFACE_INCLUDE_DIRECTORIES "${{_daxtier_prefix}}/include"
    INTERFACE_LINK_LIBRARIES "{STATIC_LIBRARIES}")
endif()

set(daxtier_PRELOAD_LIBRARY "${{_daxtier_prefix}}/{libdir}/libdaxtier_preload.so")
unset(_daxtier_prefix)
"#,
        soname = super::SONAME
    )
}

/// Returns `daxtier-config-version.cmake`: below 1.0 another second number is another interface.
pub(super) fn cmake_version() -> String {
    let version = super::VERSION;
    let mut parts = version.split('.');
    let (major, minor) = (parts.next().unwrap_or("0"), parts.next().unwrap_or("0"));
    format!(
        r#"set(PACKAGE_VERSION "{version}")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
elseif(PACKAGE_FIND_VERSION_MAJOR STREQUAL "{major}" AND
       (NOT "{major}" STREQUAL "0" OR PACKAGE_FIND_VERSION_MINOR STREQUAL "{minor}" OR PACKAGE_FIND_VERSION_COUNT LESS 2))
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
else()
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
endif()
if(PACKAGE_FIND_VERSION STREQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cmake_package_finds_its_prefix_from_any_libdir() {
        assert!(cmake_config("lib").contains("{CMAKE_CURRENT_LIST_DIR}/../../..\""));
        assert!(cmake_config("lib/x86_64-linux-gnu").contains("{CMAKE_CURRENT_LIST_DIR}/../../../..\""));
    }

    #[test]
    fn the_pkg_config_file_names_what_a_static_link_needs() {
        let text = pkg_config(Path::new("/opt/daxtier"), "lib64");
        assert!(text.contains("prefix=/opt/daxtier\n") && text.contains("libdir=${exec_prefix}/lib64\n"));
        assert!(text.contains("Libs.private: -pthread"));
    }
}
