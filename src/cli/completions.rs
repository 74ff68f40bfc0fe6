//! `fieldmirror completions`: the shell code that completes command lines, names of connections and streams included.
//!
//! What clap knows it writes itself. Names are asked for when they are wanted, by the hidden `fieldmirror names`, which is
//! quick and says nothing when the database is away.

use std::time::Duration;

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell as Generated;

use super::context::Context;
use super::report::{Error, Exit};
use super::{Globals, Line, terminal};
use crate::config::{self, Purpose};
use crate::db::{Db, analysts, connections};
use crate::providers;

/// Nobody waits longer than this for a name.
const NAMES_MAX: Duration = Duration::from_millis(1500);

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that will read the code
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// `eval "$(fieldmirror completions bash)"` in ~/.bashrc, or a file in /usr/share/bash-completion/completions
    Bash,
    /// A file `_fieldmirror` in a folder of $fpath
    Zsh,
    /// A file `fieldmirror.fish` in ~/.config/fish/completions
    Fish,
}

#[derive(Debug, Args)]
pub struct NamesArgs {
    of: Names,
    /// For streams: those of this connection; without it those of all providers
    connection: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Names {
    Connections,
    Streams,
    Providers,
    Roles,
}

pub fn run(args: &CompletionsArgs) -> Result<Exit, Error> {
    terminal::line(&script(args.shell))?;
    Ok(Exit::Done)
}

fn script(shell: Shell) -> String {
    let generated = |shell: Generated| {
        let mut code = Vec::new();
        clap_complete::generate(shell, &mut Line::command(), "fieldmirror", &mut code);
        String::from_utf8(code).expect("clap writes text")
    };
    match shell {
        Shell::Bash => without_hidden(&generated(Generated::Bash)) + BASH,
        Shell::Zsh => with_names_in_zsh(&without_hidden(&generated(Generated::Zsh))),
        Shell::Fish => without_hidden(&generated(Generated::Fish)) + FISH,
    }
}

/// clap offers also what is hidden: `names` among the words of bash, and on lines of its own in the others.
fn without_hidden(generated: &str) -> String {
    let offers = |line: &str| line.starts_with("'names:") || line.contains(" -a \"names\"");
    let lines = generated.lines().filter(|line| !offers(line)).map(|line| {
        let is_list = line.trim_start().starts_with("opts=\"");
        if is_list { line.replacen(" names ", " ", 1) } else { line.to_owned() }
    });
    lines.map(|line| line + "\n").collect()
}

/// The generated function first, then names in place of what it knows nothing about.
const BASH: &str = r#"
_fieldmirror_names() {
    local i config=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == --config ]] && config+=(--config "${COMP_WORDS[i + 1]}")
    done
    fieldmirror "${config[@]}" names "$@" 2>/dev/null
}
_fieldmirror_streams() {
    local i of=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == --resync || ${COMP_WORDS[i]} == verify ]] && of=("${COMP_WORDS[i + 1]}")
    done
    _fieldmirror_names streams "${of[@]}"
}
_fieldmirror_dynamic() {
    _fieldmirror "$@"
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD - 1]}" before names=
    ((COMP_CWORD > 1)) && before="${COMP_WORDS[COMP_CWORD - 2]}"
    [[ $current == -* ]] && return
    case "$previous" in
        status | why | verify | --reconnect | --resync | --refresh | --disconnect) names="$(_fieldmirror_names connections)" ;;
        --connect) names="$(_fieldmirror_names providers)" ;;
        grant-analyst) names="$(_fieldmirror_names roles)" ;;
        --stream) names="$(_fieldmirror_streams)" ;;
        *) [[ $before == why ]] && names="$(_fieldmirror_names streams "$previous")" || return ;;
    esac
    COMPREPLY=($(compgen -W "$names" -- "$current"))
}
complete -F _fieldmirror_dynamic -o nosort -o bashdefault -o default fieldmirror
"#;

const FISH: &str = r#"
function __fieldmirror_after
    set -l words (commandline -opc)
    for at in (seq (count $words))
        if contains -- $words[$at] $argv; and test $at -lt (count $words)
            echo $words[(math $at + 1)]
        end
    end
end
function __fieldmirror_names
    set -l config
    for file in (__fieldmirror_after --config)
        set -a config --config $file
    end
    fieldmirror $config names $argv 2>/dev/null
end
for flag in reconnect resync refresh disconnect
    complete -c fieldmirror -n "__fish_seen_subcommand_from enqueue" -l $flag -xa "(__fieldmirror_names connections)"
end
complete -c fieldmirror -n "__fish_seen_subcommand_from enqueue" -l connect -xa "(__fieldmirror_names providers)"
complete -c fieldmirror -n "__fish_seen_subcommand_from enqueue" -l stream -xa "(__fieldmirror_names streams (__fieldmirror_after --resync))"
complete -c fieldmirror -n "__fish_seen_subcommand_from verify" -l stream -xa "(__fieldmirror_names streams (__fieldmirror_after verify))"
complete -c fieldmirror -n "__fish_seen_subcommand_from grant-analyst" -fa "(__fieldmirror_names roles)"
complete -c fieldmirror -n "__fish_seen_subcommand_from status verify" -fa "(__fieldmirror_names connections)"
complete -c fieldmirror -n "__fish_seen_subcommand_from why; and not count (__fieldmirror_after why) >/dev/null" -fa "(__fieldmirror_names connections)"
complete -c fieldmirror -n "__fish_seen_subcommand_from why; and count (__fieldmirror_after why) >/dev/null" -fa "(__fieldmirror_names streams (__fieldmirror_after why))"
"#;

/// Asks for names, before the functions that complete with them. Below a subcommand the words begin with it.
const ZSH: &str = r#"_fieldmirror_names() {
    local -a names config
    local -i at
    for ((at = 1; at < CURRENT; at++)); do
        [[ $words[at] == --config ]] && config+=(--config "$words[at + 1]")
    done
    names=(${(f)"$(fieldmirror $config names "$@" 2>/dev/null)"})
    compadd -a names
}
_fieldmirror_names_of_connections() { _fieldmirror_names connections }
_fieldmirror_names_of_providers() { _fieldmirror_names providers }
_fieldmirror_names_of_roles() { _fieldmirror_names roles }
_fieldmirror_names_of_streams() {
    local -a of
    local -i at
    [[ $words[1] == (why|verify) ]] && of=(${words[2]})
    for ((at = 1; at < CURRENT; at++)); do
        case $words[at] in
            --resync) of=(${words[at + 1]}) ;;
            --resync=*) of=(${words[at]#*=}) ;;
        esac
    done
    _fieldmirror_names streams $of
}
"#;

/// clap's specs end in what completes the value: `_default` gives way to names where the value is one.
fn with_names_in_zsh(generated: &str) -> String {
    const VALUES: [(&str, &str); 6] = [
        (":CONNECTION:", "connections"),
        (":connection -- ", "connections"),
        (":PROVIDER:", "providers"),
        (":role -- ", "roles"),
        ("--stream=[", "streams"),
        (":stream -- ", "streams"),
    ];
    let line = |line: &str| {
        let names = VALUES.iter().find(|(value, _)| line.contains(value)).map(|(_, names)| names);
        match names {
            Some(names) => line.replacen(":_default'", &format!(":_fieldmirror_names_of_{names}'"), 1),
            None => line.to_owned(),
        }
    };
    // The first line tells zsh what the file is for.
    let (first, rest) = generated.split_once('\n').unwrap_or((generated, ""));
    let rest: Vec<String> = rest.lines().map(line).collect();
    format!("{first}\n{ZSH}{}", rest.join("\n"))
}

/// One name a line. Whatever goes wrong is nobody's business: a person is typing.
pub async fn names(globals: &Globals, args: NamesArgs) -> Result<Exit, Error> {
    let found = tokio::time::timeout(NAMES_MAX, find(globals, args)).await.ok().flatten().unwrap_or_default();
    for name in found {
        terminal::line(&name)?;
    }
    Ok(Exit::Done)
}

async fn find(globals: &Globals, args: NamesArgs) -> Option<Vec<String>> {
    if args.of == Names::Providers {
        return Some(providers::REGISTRY.iter().map(|provider| provider.spec().name.to_owned()).collect());
    }
    if args.of == Names::Streams && args.connection.is_none() {
        return Some(streams(None));
    }
    let loaded = config::load(&Context::sources(globals, Purpose::Command, Vec::new())).ok()?;
    let url = Context::new(globals, loaded).database_url();
    let db = Db::connect(&url, 1).ok()?;
    if args.of == Names::Roles {
        return db.run(analysts::roles).await.ok();
    }
    let all = db.run(connections::list).await.ok()?;
    match args.connection {
        Some(name) => {
            let of = all.into_iter().find(|connection| connection.name == name)?;
            Some(streams(Some(&of.provider)))
        }
        None => Some(all.into_iter().map(|connection| connection.name).collect()),
    }
}

/// The streams of a provider, or of all.
fn streams(provider: Option<&str>) -> Vec<String> {
    let specs = providers::REGISTRY.iter().map(|provider| provider.spec());
    let specs = specs.filter(|spec| provider.is_none_or(|name| name == spec.name));
    let mut names: Vec<String> =
        specs.flat_map(|spec| spec.streams.iter().map(|stream| stream.name.to_owned())).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_that_is_a_name_is_asked_for() {
        let zsh = script(Shell::Zsh);
        assert!(zsh.starts_with("#compdef fieldmirror\n"), "{}", &zsh[..100]);
        for flag in ["reconnect", "resync", "refresh", "disconnect"] {
            let line = zsh.lines().find(|line| line.contains(&format!("'--{flag}=")));
            let line = line.unwrap_or_else(|| panic!("no --{flag} in {zsh}"));
            assert!(line.contains("_fieldmirror_names_of_connections"), "{line}");
        }
        let positional = |word: &str, names: &str| {
            zsh.lines()
                .any(|line| line.contains(word) && line.contains(&format!("_fieldmirror_names_of_{names}'")))
        };
        assert!(positional(":connection -- ", "connections") && positional(":stream -- ", "streams"));
        assert!(positional(":role -- ", "roles"));
        assert!(positional("'*--stream=[", "streams") && !positional("'--state=[", "streams"));
        assert!(script(Shell::Fish).contains("__fieldmirror_names connections"));
    }

    #[test]
    fn what_is_hidden_is_not_offered() {
        let offered = |shell, lines: fn(&str) -> bool| {
            let script = script(shell);
            let lines: Vec<_> = script.lines().filter(|line| lines(line)).map(str::to_owned).collect();
            assert!(lines.iter().any(|line| line.contains("doctor")), "{shell:?}: {lines:?}");
            assert!(
                lines.iter().all(|line| !line.contains("names ") && !line.contains("names:")),
                "{shell:?}"
            );
        };
        offered(Shell::Bash, |line| line.contains("opts=\"") && line.contains(" enqueue "));
        offered(Shell::Zsh, |line| line.starts_with('\'') && line.contains(":L"));
        offered(Shell::Fish, |line| line.contains("needs_command") && !line.contains("\"completions\""));
    }

    #[test]
    fn streams_of_one_and_of_all() {
        assert!(streams(Some("hubspot")).contains(&"tickets".to_owned()));
        assert!(streams(None).len() >= streams(Some("hubspot")).len());
        assert_eq!(streams(Some("nobody")), Vec::<String>::new());
    }
}
