use super::*;
use crate::policy::{Policy, TierName};
use crate::runtime::config::{FastSize, OnError, StatsTarget};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

fn environment(variables: &[(&str, &str)]) -> Result<Effective, ConfigError> {
    let mut effective = Effective::default();
    effective.apply_environment(variables.iter().copied())?;
    effective.validate()?;
    Ok(effective)
}

fn message(variables: &[(&str, &str)]) -> String {
    environment(variables).expect_err("the environment was accepted").to_string()
}

/// A file that goes with its test.
struct ScratchFile(PathBuf);

impl ScratchFile {
    fn new(name: &str, contents: &[u8]) -> ScratchFile {
        let path = std::env::temp_dir().join(format!("daxtier-conf-{name}-{}", std::process::id()));
        fs::write(&path, contents).unwrap();
        ScratchFile(path)
    }

    fn at(&self) -> String {
        format!("@{}", self.0.display())
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn nothing_said_means_the_defaults() {
    let effective = environment(&[("PATH", "/bin"), ("DAXTIE", "x"), ("LD_PRELOAD", "x.so")]).unwrap();
    assert_eq!(*effective.config(), Config::default());
    for key in Key::ALL {
        assert_eq!(*effective.origin(key), Origin::Default);
    }
}

#[test]
fn single_variables_stand_above_the_string_whatever_their_order() {
    let conf = ("DAXTIER_CONF", "fast=64M slow=emulated:2G policy=bind=slow");
    for variables in [[conf, ("DAXTIER_FAST", "25%")], [("DAXTIER_FAST", "25%"), conf]] {
        let effective = environment(&variables).unwrap();
        assert_eq!(effective.config().fast, FastSize::Percent(25));
        assert_eq!(effective.config().policy, Policy::Bind(TierName::Slow));
        assert_eq!(effective.origin(Key::Fast).to_string(), "DAXTIER_FAST");
        assert_eq!(effective.origin(Key::Slow).to_string(), "DAXTIER_CONF");
        assert_eq!(effective.origin(Key::Stats).to_string(), "default");
        assert_eq!(effective.value(Key::Slow), "emulated:2G");
    }
}

#[test]
fn a_file_is_read_with_its_lines() {
    let file =
        ScratchFile::new("good", b"# tiers\nfast=64M\n\nslow=emulated:1G;emulated:2G # two\nstats=\"a b\"\n");
    let effective = environment(&[("DAXTIER_CONF", &file.at())]).unwrap();
    assert_eq!(effective.config().slow.len(), 2);
    assert_eq!(effective.config().stats, Some(StatsTarget::File("a b".into())));
    assert_eq!(effective.origin(Key::Slow).to_string(), format!("{}:4", file.0.display()));
    assert_eq!(Config::parse(&file.at()), Ok(effective.into_config()));
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let at = |path: &str| Config::parse(&format!("@{path}")).unwrap_err();
    assert!(matches!(at("/nonexistent/daxtier.conf"), ConfigError::File { .. }));
    assert_eq!(
        at("/nonexistent/daxtier.conf").to_string(),
        "configuration file /nonexistent/daxtier.conf: open: No such file or directory (os error 2)"
    );
    let nameless = message(&[("DAXTIER_CONF", "@")]);
    assert_eq!(
        nameless,
        "DAXTIER_CONF: there is no file behind the @: write @FILE, such as @/etc/daxtier.conf"
    );
    assert_eq!(at("/tmp"), ConfigError::NotAFile { path: "/tmp".into() });
    assert_eq!(at("/dev/zero"), ConfigError::NotAFile { path: "/dev/zero".into() });
    let long = ScratchFile::new("long", &[b'#'; MAX_FILE_BYTES + 1]);
    assert_eq!(Config::parse(&long.at()), Err(ConfigError::LongFile { path: long.0.clone() }));
    let binary = ScratchFile::new("binary", b"fast=64M\n\xff\xfe\n");
    let seen = Config::parse(&binary.at()).unwrap_err().to_string();
    assert_eq!(seen, format!("{}:2 is not UTF-8 text", binary.0.display()));
    let wrong = ScratchFile::new("wrong", b"fast=64M\npolicy=fil\n");
    let seen = Config::parse(&wrong.at()).unwrap_err().to_string();
    assert!(seen.starts_with(&format!("{}:2: policy: \"fil\" is not a policy", wrong.0.display())), "{seen}");
}

#[test]
fn unknown_names_point_to_the_nearest() {
    assert_eq!(
        message(&[("DAXTIER_FSAT", "1G")]),
        "DAXTIER_FSAT is not a variable of daxtier: did you mean DAXTIER_FAST?"
    );
    assert_eq!(
        message(&[("DAXTIER_COLOUR", "red")]),
        "DAXTIER_COLOUR is not a variable of daxtier: known are DAXTIER_CONF, DAXTIER_FAST, DAXTIER_SLOW, \
         DAXTIER_POLICY, DAXTIER_STATS, DAXTIER_ON_ERROR, DAXTIER_MIGRATE, DAXTIER_ON_LOSS, DAXTIER_CONTROL"
    );
    assert_eq!(
        message(&[("DAXTIER_CONF", "fast=1G polcy=fill")]),
        "DAXTIER_CONF: \"polcy\" is not a setting: did you mean policy?"
    );
    assert!(environment(&[("DAXTIER_RUN_ANYTHING", "1")]).is_ok(), "what daxtier run passes on is ours");
}

#[test]
fn wrong_values_say_what_was_seen_and_what_would_do() {
    assert_eq!(
        message(&[("DAXTIER_FAST", "lots")]),
        "DAXTIER_FAST: \"lots\" is not a size: write a number with K, M, G or T behind it, such as 512M or 4G \
         (for example DAXTIER_FAST=512M)"
    );
    assert_eq!(
        message(&[("DAXTIER_CONF", "on_error=ignore")]),
        "DAXTIER_CONF: on_error: \"ignore\" is not a choice: write stop or passthrough (for example on_error=stop)"
    );
    assert_eq!(
        message(&[("DAXTIER_SLOW", "")]),
        "DAXTIER_SLOW is empty: leave it out for the default, or give it a value \
         (for example DAXTIER_SLOW=/dev/dax0.0,size=64G)"
    );
    assert_eq!(message(&[("DAXTIER_CONF", "fast=1G fast=2G")]), "DAXTIER_CONF: fast is given twice");
    assert_eq!(
        message(&[("DAXTIER_CONF", "fast = 1G")]),
        "DAXTIER_CONF: \"fast\" has no value: write KEY=VALUE without blanks around the =, such as fast=512M"
    );
}

#[test]
fn every_mistake_has_its_own_error() {
    let seen = |variables: &[(&str, &str)]| environment(variables).unwrap_err();
    let text = || Origin::Text { source: CONF.into(), line: None };
    assert_eq!(seen(&[(CONF, " ")]), ConfigError::EmptyText { at: text() });
    assert_eq!(seen(&[(CONF, "stats=")]), ConfigError::Empty { at: text(), key: Key::Stats });
    assert_eq!(seen(&[(CONF, "stats=\"a")]), ConfigError::OpenQuote { at: text(), key: Key::Stats });
    assert_eq!(seen(&[(CONF, "=1G")]), ConfigError::NoValue { at: text(), word: "=".into() });
    let lines =
        ConfigError::Twice { at: Origin::Text { source: CONF.into(), line: Some(2) }, key: Key::Slow };
    assert_eq!(seen(&[(CONF, "slow=emulated:1G\nslow=emulated:1G")]), lines);
    let twice = ConfigError::VariableTwice { variable: "DAXTIER_FAST" };
    assert_eq!(seen(&[("DAXTIER_FAST", "1G"), ("DAXTIER_FAST", "1G")]), twice);
    let bytes: [(&[u8], &[u8]); 1] = [(b"DAXTIER_STATS", b"/tmp/\xff")];
    let not_text = ConfigError::NotText { at: Origin::Variable("DAXTIER_STATS") };
    assert_eq!(Config::from_environment(bytes), Err(not_text));
}

#[test]
fn a_policy_of_the_slow_tier_needs_a_slow_device() {
    for policy in ["bind=slow", "preferred=slow", "interleave=3:1"] {
        let seen = message(&[("DAXTIER_POLICY", policy)]);
        assert!(seen.starts_with(&format!("DAXTIER_POLICY: {policy} needs a slow tier")), "{seen}");
        assert!(environment(&[("DAXTIER_POLICY", policy), ("DAXTIER_SLOW", "emulated:1G")]).is_ok());
    }
    assert!(environment(&[("DAXTIER_POLICY", "bind=fast")]).is_ok());
}

#[test]
fn a_program_that_fills_in_nonsense_is_told() {
    let valid = Config { slow: vec!["emulated:1G".parse().unwrap()], ..Config::default() };
    assert_eq!(valid.validate(), Ok(()));
    for wrong in [
        Config { fast: FastSize::Percent(0), ..valid.clone() },
        Config { fast: FastSize::Percent(101), ..valid.clone() },
        Config { fast: FastSize::Bytes(1), ..valid.clone() },
        Config { fast: FastSize::Bytes(u64::MAX), ..valid.clone() },
        Config { policy: Policy::Interleave { fast: 0, slow: 0 }, ..valid.clone() },
        Config { policy: Policy::Bind(TierName::Slow), slow: Vec::new(), ..valid.clone() },
        Config { stats: Some(StatsTarget::File(PathBuf::new())), ..valid.clone() },
        Config {
            slow: vec![crate::runtime::config::SlowSpec {
                range: Some(Range { start: 9, end: 3 }),
                ..valid.slow[0].clone()
            }],
            ..valid.clone()
        },
        Config {
            slow: vec![crate::runtime::config::SlowSpec {
                range: Some(0..u64::MAX),
                ..valid.slow[0].clone()
            }],
            ..valid.clone()
        },
    ] {
        let error = wrong.validate().expect_err("nonsense was accepted");
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn what_to_do_about_an_error_is_known_despite_it() {
    let file = ScratchFile::new("onerror", b"fast=nonsense\non_error=passthrough\n");
    let file = file.at();
    for (variables, expected) in [
        (vec![("DAXTIER_FAST", "nonsense")], OnError::Stop),
        (vec![("DAXTIER_FAST", "nonsense"), ("DAXTIER_ON_ERROR", "passthrough")], OnError::Passthrough),
        (vec![(CONF, "fast=nonsense on_error=passthrough")], OnError::Passthrough),
        (vec![(CONF, "on_error=passthrough"), ("DAXTIER_ON_ERROR", "stop")], OnError::Stop),
        (vec![(CONF, file.as_str())], OnError::Passthrough),
        (vec![(CONF, "@/nonexistent")], OnError::Stop),
        (vec![("DAXTIER_ON_ERROR", "nonsense")], OnError::Stop),
    ] {
        assert_eq!(OnError::in_force(variables.clone()), expected, "{variables:?}");
    }
}

#[test]
fn long_nonsense_is_cut_in_messages() {
    let long = "x".repeat(100_000);
    for variables in
        [[("DAXTIER_FAST", long.as_str())], [(CONF, long.as_str())], [("DAXTIER_POLICY", long.as_str())]]
    {
        assert!(message(&variables).len() < 500);
    }
}
