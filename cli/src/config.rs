//! `daxtier config`: which settings are in force, and who said so.

use crate::print;
use daxtier::runtime::config::{AvailableMemory, CONF, ConfigError, Effective, FastSize, Key, Origin};
use daxtier::runtime::json;
use daxtier::units::Bytes;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;

/// Shows the configuration that a program started now would have, and where each setting comes from.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Look at this configuration string, or @FILE, in place of DAXTIER_CONF.
    #[arg(long, value_name = "STRING")]
    conf: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Reads the environment as the preload library would, with `conf` in place of `DAXTIER_CONF`.
pub(crate) fn in_force(
    conf: Option<&str>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Effective, ConfigError> {
    let mut effective = Effective::default();
    if let Some(text) = conf {
        effective.apply_text(text, "--conf")?;
    }
    let variables = variables.into_iter().filter(|(name, _)| conf.is_none() || name != CONF);
    effective.apply_environment(variables.map(|(name, value)| (name.into_vec(), value.into_vec())))?;
    Ok(effective)
}

/// Prints the settings; exit code 78 when they cannot be used.
pub(crate) fn run(args: Args) -> ExitCode {
    let memory = AvailableMemory::read(Path::new("/"));
    let checked = in_force(args.conf.as_deref(), std::env::vars_os()).and_then(|effective| {
        effective.validate()?;
        let fast_bytes = effective.config().fast.resolve(&memory)?;
        Ok((effective, fast_bytes))
    });
    match checked {
        Ok((effective, fast_bytes)) => {
            let text = if args.json {
                to_json(&effective, fast_bytes)
            } else {
                to_text(&effective, fast_bytes, &memory)
            };
            print::out(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            print::complain(error);
            print::exit_config()
        }
    }
}

fn to_text(effective: &Effective, fast_bytes: u64, memory: &AvailableMemory) -> String {
    let rows = Key::ALL.map(|key| {
        let value = effective.value(key);
        let from = effective.origin(key).to_string();
        let from = if *effective.origin(key) == Origin::Default {
            format!("{from} ({})", key.variable())
        } else {
            from
        };
        (key.name(), if value.is_empty() { "none".to_owned() } else { value }, from)
    });
    let width = rows.iter().map(|(_, value, _)| value.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value, from) in rows {
        text.push_str(&format!("{name:<8}  {value:<width$}  {from}\n"));
    }
    if !matches!(effective.config().fast, FastSize::Bytes(_)) {
        text.push_str(&format!("\nfast is {} now, {}", Bytes(fast_bytes), effective.config().fast));
        let available = memory.usable_bytes().map(|bytes| format!(" of {}", Bytes(bytes)));
        let group = memory.group.as_ref().filter(|group| Some(group.headroom_bytes) == memory.usable_bytes());
        let by = match group {
            Some(group) => format!(" that the control group {} has left", group.group.display()),
            None => " available".to_owned(),
        };
        text.push_str(&format!("{}{by}\n", available.unwrap_or_default()));
    }
    text
}

fn to_json(effective: &Effective, fast_bytes: u64) -> String {
    json::document(|value| {
        value.object(|object| {
            object.key("fast_bytes").number(fast_bytes);
            object.key("string").string(&effective.config().to_string());
            object.key("settings").array(|settings| {
                for key in Key::ALL {
                    let value = effective.value(key);
                    settings.element().object(|setting| {
                        setting.key("key").string(key.name());
                        setting.key("value").string_or_null((!value.is_empty()).then_some(value.as_str()));
                        setting.key("from").string(&effective.origin(key).to_string());
                        setting.key("variable").string(key.variable());
                    });
                }
            });
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn the_text_says_what_is_in_force_and_from_where() {
        let environment = variables(&[("DAXTIER_FAST", "64M"), ("DAXTIER_CONF", "slow=emulated:2G fast=1G")]);
        let effective = in_force(None, environment.clone()).unwrap();
        let text = to_text(&effective, 64 << 20, &AvailableMemory::default());
        let lines = [
            "fast      64M          DAXTIER_FAST",
            "slow      emulated:2G  DAXTIER_CONF",
            "policy    fill         default (DAXTIER_POLICY)",
            "stats     none         default (DAXTIER_STATS)",
            "on_error  stop         default (DAXTIER_ON_ERROR)",
            "migrate   on           default (DAXTIER_MIGRATE)",
            "on_loss   sigbus       default (DAXTIER_ON_LOSS)",
            "control   auto         default (DAXTIER_CONTROL)",
            "",
        ];
        assert_eq!(text, lines.join("\n"));
        let effective = in_force(Some("policy=bind=fast"), environment).unwrap();
        assert_eq!(effective.origin(Key::Policy).to_string(), "--conf");
        assert_eq!(effective.config().slow, [], "--conf stands in for DAXTIER_CONF");
    }

    #[test]
    fn a_share_says_what_it_is_a_share_of() {
        let memory = AvailableMemory { available_bytes: Some(10 << 30), ..AvailableMemory::default() };
        let text = to_text(&Effective::default(), 8 << 30, &memory);
        assert!(text.ends_with("\n\nfast is 8 GiB now, 80% of 10 GiB available\n"), "{text}");
    }

    #[test]
    fn the_json_holds_a_string_that_reads_back() {
        let environment = variables(&[("DAXTIER_STATS", "/tmp/a \"b\".json")]);
        let effective = in_force(None, environment).unwrap();
        let text = to_json(&effective, 1);
        assert!(
            text.contains(r#""string": "policy=fill stats=\"/tmp/a \\\"b\\\".json\" on_error=stop""#),
            "{text}"
        );
        assert!(text.contains("\"value\": null"), "{text}");
    }
}
