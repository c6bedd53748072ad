//! malloc for unmodified programs.
