use super::*;
use crate::policy::Policy;
use crate::runtime::config::{Config, Key};
use crate::runtime::config::{Control, Demotion, Migrate, OnError, OnLoss, Workers};
use proptest::prelude::*;

const M: u64 = 1 << 20;
const G: u64 = 1 << 30;

#[test]
fn fast_is_a_size_or_a_share() {
    for (text, size) in [
        ("64M", FastSize::Bytes(64 * M)),
        (" 1.5G ", FastSize::Bytes(3 * G / 2)),
        ("4194304", FastSize::Bytes(4 * M)),
        ("1%", FastSize::Percent(1)),
        ("100%", FastSize::Percent(100)),
    ] {
        assert_eq!(text.parse(), Ok(size), "{text}");
    }
    for text in ["0%", "101%", "256%", "-1%", "+5%", "%", "x%", "1.5%", "50%%"] {
        assert_eq!(text.parse::<FastSize>(), Err(ValueError::NotAPercentage { text: text.into() }), "{text}");
    }
}

#[test]
fn partial_slots_name_the_sizes_beside_them() {
    let message = |text: &str| text.parse::<FastSize>().unwrap_err().to_string();
    assert_eq!(
        message("65M"),
        "65M is not a whole number of 2 MiB slots: use 64M (32 slots) or 66M (33 slots)"
    );
    assert_eq!(message("3M"), "3M is not a whole number of 2 MiB slots: use 4M (2 slots)");
    assert_eq!(message("2M"), "2M is too small: the least is 4M (two slots of 2 MiB)");
    assert_eq!(message("0"), "0 is too small: the least is 4M (two slots of 2 MiB)");
}

#[test]
fn a_slow_device_has_a_size_and_a_range() {
    let spec: SlowSpec = "/dev/dax0.0, size=64G ,range=2G+128G".parse().unwrap();
    assert_eq!(spec.device, DeviceSpec::Dax("/dev/dax0.0".into()));
    assert_eq!((spec.size, spec.range.clone()), (Some(64 * G), Some(2 * G..130 * G)));
    assert_eq!(spec.to_string(), "/dev/dax0.0,size=64G,range=2G+128G");
    for policy in ScrubPolicy::ALL {
        let spec: SlowSpec = format!("/dev/dax0.0,scrub={policy}").parse().unwrap();
        assert_eq!((spec.scrub, spec.dax_options().scrub), (policy, policy));
    }
    assert_eq!("node:1:4G".parse(), Ok(SlowSpec::whole(DeviceSpec::Node { id: 1, size: Some(4 * G) })));
}

#[test]
fn what_is_wrong_with_a_slow_device_is_named() {
    type Expected = fn(&ValueError) -> bool;
    let cases: [(&str, Expected); 24] = [
        ("", |e| *e == ValueError::NoDevice),
        ("/dev/dax0.0;", |e| *e == ValueError::NoDevice),
        (";emulated:2G", |e| *e == ValueError::NoDevice),
        ("dax0.0", |e| matches!(e, ValueError::Device(_))),
        ("/dev/dax0.0,", |e| matches!(e, ValueError::UnknownOption { .. })),
        ("/dev/dax0.0,siz=1G", |e| matches!(e, ValueError::UnknownOption { text } if text == "siz=1G")),
        ("/dev/dax0.0,size=1G,size=2G", |e| matches!(e, ValueError::OptionTwice { option: "size", .. })),
        ("/dev/dax0.0,range=1G", |e| matches!(e, ValueError::NotARange { .. })),
        ("/dev/dax0.0,range=1M+4M", |e| *e == ValueError::RangeStart { bytes: M }),
        ("/dev/dax0.0,range=4M+5M", |e| *e == ValueError::PartialSlot { bytes: 5 * M }),
        ("emulated:64M,range=1M+5M", |e| matches!(e, ValueError::NoRanges { .. })),
        ("/dev/dax0.0,range=4M+0", |e| *e == ValueError::TooSmall { bytes: 0 }),
        ("/dev/dax0.0,range=8388606T+8388606T", |e| {
            matches!(e, ValueError::Size(SizeError::TooLarge { .. }))
        }),
        ("/dev/dax0.0,size=8M,range=0+4M", |e| matches!(e, ValueError::BeyondRange { .. })),
        ("emulated:2G,size=4G", |e| matches!(e, ValueError::BeyondDevice { .. })),
        ("emulated:2G,range=1G+1G", |e| matches!(e, ValueError::NoRanges { .. })),
        ("node:1,range=0+1G", |e| matches!(e, ValueError::NoRanges { .. })),
        (
            "/dev/dax0.0,scrub=sometimes",
            |e| matches!(e, ValueError::UnknownScrub { text } if text == "sometimes"),
        ),
        ("/dev/dax0.0,scrub=", |e| matches!(e, ValueError::UnknownScrub { .. })),
        ("/dev/dax0.0,scrub=never,scrub=on-claim", |e| {
            matches!(e, ValueError::OptionTwice { option: "scrub", .. })
        }),
        ("emulated:2G,exclusive", |e| matches!(e, ValueError::NothingToForce { .. })),
        ("emulated:2G,scrub=on-release", |e| matches!(e, ValueError::NothingToScrub { .. })),
        ("node:1,scrub=never", |e| matches!(e, ValueError::NothingToScrub { .. })),
        ("node:1,size=1G", |e| matches!(e, ValueError::SizeOfNode { .. })),
    ];
    for (text, expected) in cases {
        let seen = match parse_slow(text).expect_err(text) {
            ValueError::OfDevice { spec, error } => {
                assert_eq!(spec, text);
                *error
            }
            seen => seen,
        };
        assert!(expected(&seen), "{text:?} gave {seen:?}");
    }
}

#[test]
fn of_several_devices_the_wrong_one_is_named() {
    assert_eq!(
        parse_slow("emulated:1G;emulated:2M").unwrap_err().to_string(),
        "\"emulated:2M\": 2M is too small: the least is 4M (two slots of 2 MiB)"
    );
}

#[test]
fn two_entries_share_no_bytes_of_a_device() {
    for text in [
        "/dev/dax0.0;/dev/dax0.0",
        "/dev/dax0.0,range=0+4G;/dev/dax0.0,range=2G+4G",
        "/dev/dax0.0,range=0+4G;/dev/dax0.0",
        "node:1;node:1:4G",
    ] {
        assert!(matches!(parse_slow(text), Err(ValueError::DeviceTwice { .. })), "{text}");
    }
    for text in ["/dev/dax0.0,range=0+4G;/dev/dax0.0,range=4G+4G", "emulated:1G;emulated:1G", "node:1;node:2"]
    {
        assert_eq!(parse_slow(text).map(|specs| specs.len()), Ok(2), "{text}");
    }
}

#[test]
fn statistics_go_to_a_file_of_each_process() {
    let target: StatsTarget = "/tmp/s.%p.json".parse().unwrap();
    assert_eq!(target.path_for(123), Some("/tmp/s.123.json".into()));
    assert_eq!("-".parse(), Ok(StatsTarget::Stderr));
    assert_eq!(StatsTarget::Stderr.path_for(123), None);
    let relative: StatsTarget = "s.json".parse().unwrap();
    assert_eq!(relative.anchored(Path::new("/home/u")), StatsTarget::File("/home/u/s.json".into()));
    assert_eq!(target.anchored(Path::new("/work")), target);
    assert_eq!(StatsTarget::File("stderr".into()).to_string(), "./stderr");
    for text in ["", "/tmp/", ".", "..", "a/..", "a\nb", "\x1b[2J"] {
        assert!(matches!(text.parse::<StatsTarget>(), Err(ValueError::NotAPath { .. })), "{text:?}");
    }
}

fn tier_bytes() -> impl Strategy<Value = u64> {
    (2u64..1 << 22).prop_map(|slots| slots * SLOT_BYTES)
}

fn slow_spec() -> impl Strategy<Value = SlowSpec> {
    let dax = (
        "/[a-z]{1,8}/dax[0-9]\\.[0-9]",
        proptest::option::of(tier_bytes()),
        any::<[bool; 4]>(),
        tier_bytes(),
        proptest::sample::select(&ScrubPolicy::ALL[..]),
    );
    let dax =
        dax.prop_map(|(path, size, [ranged, exclusive, force, allow_persistent], start, scrub)| SlowSpec {
            scrub,
            exclusive,
            force,
            allow_persistent,
            device: DeviceSpec::Dax(path.into()),
            size,
            range: ranged.then(|| start..start + size.unwrap_or(MIN_TIER_BYTES)),
        });
    let emulated = tier_bytes().prop_map(|bytes| SlowSpec::whole(DeviceSpec::Emulated(bytes)));
    let node = (any::<u32>(), proptest::option::of(tier_bytes()));
    let node = node.prop_map(|(id, size)| SlowSpec::whole(DeviceSpec::Node { id, size }));
    prop_oneof![dax, emulated, node]
}

fn config() -> impl Strategy<Value = Config> {
    let fast = prop_oneof![
        Just(FastSize::Default),
        tier_bytes().prop_map(FastSize::Bytes),
        (1u8..=100).prop_map(FastSize::Percent)
    ];
    let policy = prop_oneof![
        Just("fill".to_owned()),
        (1u32..=64, 1u32..=64).prop_map(|(f, s)| format!("interleave={f}:{s}")),
        "(bind|preferred)=(fast|slow)"
    ];
    let stats = proptest::option::of(prop_oneof![
        Just(StatsTarget::Stderr),
        "[^\\pC]{1,40}[^\\pC\\pZ/.]".prop_map(|path| StatsTarget::File(path.into()))
    ]);
    let on_error = prop_oneof![Just(OnError::Stop), Just(OnError::Passthrough)];
    let cpus =
        proptest::collection::vec((0u16..1000, 0u16..20).prop_map(|(cpu, more)| cpu..=cpu + more), 0..3);
    let way = prop_oneof![Just(Demotion::PinSafe), Just(Demotion::Protect)];
    let workers = (1..=Workers::MOST, cpus, way)
        .prop_map(|(count, cpus, way)| Workers::new(count, cpus).unwrap().demoting(way));
    let migrate = prop_oneof![workers.prop_map(Migrate::On), Just(Migrate::Off)];
    let on_loss = prop_oneof![Just(OnLoss::Sigbus), Just(OnLoss::ZeroFill)];
    let control = prop_oneof![Just(Control::Auto), Just(Control::On), Just(Control::Off)];
    let choices = (on_error, migrate, on_loss, control);
    (fast, proptest::collection::vec(slow_spec(), 1..4), policy, stats, choices).prop_map(
        |(fast, slow, policy, stats, (on_error, migrate, on_loss, control))| {
            let policy: Policy = policy.parse().unwrap();
            Config { fast, slow, policy, stats, on_error, migrate, on_loss, control }
        },
    )
}

proptest! {
    #[test]
    fn a_configuration_reads_back_what_it_prints(config in config()) {
        prop_assume!(check_slow(&config.slow).is_ok());
        prop_assume!(config.stats != Some(StatsTarget::File("-".into())));
        prop_assert_eq!(Config::parse(&config.to_string()), Ok(config));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>(), key in 0usize..8, value in any::<String>()) {
        let _ = Config::parse(text.trim_start_matches('@')).map_err(|error| error.to_string());
        let word = format!("{}={value}", Key::ALL[key].name());
        let _ = Config::parse(&word).map_err(|error| error.to_string());
    }

    #[test]
    fn no_bytes_in_the_environment_make_the_parser_panic(
        name in proptest::collection::vec(any::<u8>(), 0..12),
        value in "[-0-9a-zA-Z/:;,=+%.@ \"\\\\]{0,30}",
        raw in proptest::collection::vec(any::<u8>(), 0..30),
        key in 0usize..8,
    ) {
        let name = [b"DAXTIER_".as_slice(), &name].concat();
        prop_assume!(name != b"DAXTIER_CONF");
        let known = Key::ALL[key].variable().as_bytes().to_vec();
        for variables in [vec![(name.clone(), raw.clone())], vec![(known.clone(), raw)], vec![(known, value.into_bytes())]] {
            let _ = Config::from_environment(variables.clone()).map_err(|error| error.to_string());
            let _ = OnError::in_force(variables);
        }
    }

    #[test]
    fn every_accepted_fast_size_is_whole_slots(text in "[0-9]{1,6}[KMGTkmgt]?") {
        if let Ok(FastSize::Bytes(bytes)) = text.parse() {
            prop_assert!(bytes >= MIN_TIER_BYTES && bytes % SLOT_BYTES == 0);
        }
    }
}
