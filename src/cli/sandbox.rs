//! `fieldmirror sandbox`: stand-ins of the providers on one address, until Ctrl-C.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::report::{Error, Exit, Kind};
use super::terminal::Terminal;
use crate::sandbox::faults::{Fault, FaultName};
use crate::sandbox::{Sandbox, SandboxOptions};

/// More than that takes longer to make than anybody waits.
const RECORDS_MAX: u64 = 10_000_000;

#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// Address and port to serve on; port 0 takes a free one. Keep to loopback: there is no lock on it
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// The same seed and number of records give the same records
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Records in the first account of each provider
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(0..=RECORDS_MAX))]
    records: u64,
    /// How long access tokens live
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = humantime::parse_duration)]
    token_life: Duration,
    /// Something that goes wrong, such as `http_502=0.05` (repeatable); `help` lists them
    #[arg(long, value_name = "F")]
    fault: Vec<String>,
}

pub async fn run(terminal: Terminal, args: SandboxArgs) -> Result<Exit, Error> {
    if args.fault.iter().any(|fault| fault == "help") {
        terminal.result(|| json!({ "faults": known_faults() }), fault_list)?;
        return Ok(Exit::Done);
    }
    let options = options(&args)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| Error::new(Kind::BadRequest, format!("listening on `{}`: {error}", args.listen)))?;
    let address = listener.local_addr().map_err(|error| Error::io("asking for our own address", &error))?;
    let spinner = terminal.spinner("making the worlds");
    let made = tokio::task::spawn_blocking(|| Sandbox::new(options)).await;
    let sandbox = made.map_err(|error| Error::new(Kind::Failed, format!("making the worlds: {error}")))?;
    spinner.finish_and_clear();
    let base = format!("http://{address}");
    // Heard before the address is told: whoever reads it may stop us at once.
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| Error::io("listening for Ctrl-C", &error))?;
    let settings = sandbox.settings(&base);
    terminal.result(|| object(&base, &settings), || text(&base, &settings))?;
    let stop = async move {
        interrupts.recv().await;
    };
    sandbox.serve(listener, stop).await.map_err(|error| Error::io("serving", &error))?;
    Ok(Exit::Done)
}

fn options(args: &SandboxArgs) -> Result<SandboxOptions, Error> {
    let faults = args.fault.iter().map(|text| {
        text.parse::<Fault>().map_err(|error| {
            Error::bad_request(format!("`--fault {text}`: {error}")).hint("`--fault help` lists them")
        })
    });
    Ok(SandboxOptions {
        seed: args.seed,
        records: usize::try_from(args.records).unwrap_or(usize::MAX),
        faults: faults.collect::<Result<_, _>>()?,
        access_token_life: args.token_life,
        ..SandboxOptions::default()
    })
}

fn known_faults() -> Vec<Value> {
    FaultName::all().map(|(name, does)| json!({ "name": name, "does": does })).collect()
}

fn fault_list() -> String {
    FaultName::all().map(|(name, does)| format!("{name}: {does}")).collect::<Vec<_>>().join(
        "
",
    )
}

/// Settings of a provider's section: provider, key, value.
type Setting = (&'static str, &'static str, String);

fn object(base: &str, settings: &[Setting]) -> Value {
    let mut providers = json!({});
    for (provider, key, value) in settings {
        providers[provider][key] = value.as_str().into();
    }
    json!({ "base_url": base, "control_url": format!("{base}/control"), "settings": { "providers": providers } })
}

/// One line with the address, then what to put into a settings file.
fn text(base: &str, settings: &[Setting]) -> String {
    let mut lines = vec![format!(
        "Sandbox on {base} (accounts and control: GET {base}/); put this into a settings file:"
    )];
    let mut section = "";
    for (provider, key, value) in settings {
        if section != *provider {
            section = provider;
            lines.extend([String::new(), format!("[providers.{provider}]")]);
        }
        // Numbers stand bare.
        let quote = if value.parse::<u32>().is_ok() { "" } else { "\"" };
        lines.push(format!("{key} = {quote}{value}{quote}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_checked() {
        let args = |fault: &str| SandboxArgs {
            listen: "127.0.0.1:0".parse().unwrap(),
            seed: 3,
            records: 5,
            token_life: Duration::from_secs(10),
            fault: vec![fault.to_owned()],
        };
        let options = options(&args("http_502=0.05")).unwrap();
        assert_eq!((options.seed, options.records, options.faults.len()), (3, 5, 1));
        assert_eq!(options.access_token_life, Duration::from_secs(10));
        assert!(super::options(&args("nothing")).is_err_and(|error| error.hint.is_some()));
    }

    #[test]
    fn the_settings_shown_are_settings() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sandbox.toml");
        let options = SandboxOptions { records: 1, accounts: 1, ..SandboxOptions::default() };
        let base = "http://127.0.0.1:1";
        let shown = Sandbox::new(options).settings(base);
        std::fs::write(&file, text(base, &shown).split_once("\n\n").unwrap().1).unwrap();
        let mut sources = crate::config::Sources::none();
        sources.files.push(file);
        let loaded = crate::config::load(&sources).expect("the settings are accepted");
        assert_eq!(loaded.settings.providers["hubspot"].api_base.as_str(), "http://127.0.0.1:1/hubspot");
        assert_eq!(
            object(base, &shown)["settings"]["providers"]["hubspot"]["api_base"],
            "http://127.0.0.1:1/hubspot"
        );
    }
}
