//! `fieldmirror man`: the manual pages, made from the same description as the help texts.

use std::path::PathBuf;

use clap::{Args, Command, CommandFactory as _};

use super::report::{Error, Exit, Kind};
use super::{Line, terminal};

#[derive(Debug, Args)]
pub struct ManArgs {
    /// The page of this command, such as `enqueue`; without it the program's own: `fieldmirror man | man -l -`
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write all pages into this folder instead
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    out: Option<PathBuf>,
}

pub fn run(args: &ManArgs) -> Result<Exit, Error> {
    let program = program();
    if let Some(folder) = &args.out {
        let write = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(program, folder));
        write.map_err(|error| Error::io(&format!("writing pages into `{}`", folder.display()), &error))?;
        return Ok(Exit::Done);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(of(&program, &args.command)?)
        .render(&mut page)
        .map_err(|error| Error::io("making the page", &error))?;
    terminal::line(String::from_utf8_lossy(&page).trim_end())?;
    Ok(Exit::Done)
}

/// Commands that are called by shells alone have no page.
fn program() -> Command {
    let mut program = Line::command();
    program.build();
    program
}

/// The command that the words name, called by its whole name, as in `fieldmirror-key-status`.
fn of(program: &Command, words: &[String]) -> Result<Command, Error> {
    let mut command = program;
    let mut name = "fieldmirror".to_owned();
    for word in words {
        command =
            command.find_subcommand(word).filter(|command| !command.is_hide_set()).ok_or_else(|| {
                Error::new(Kind::UnknownName, format!("there is no command `{}`", words.join(" ")))
                    .hint("`fieldmirror --help` lists them")
            })?;
        name = format!("{name}-{word}");
    }
    Ok(command.clone().display_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(words: &[&str]) -> Result<String, Error> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut page = Vec::new();
        clap_mangen::Man::new(of(&program(), &words)?).render(&mut page).unwrap();
        Ok(String::from_utf8(page).unwrap())
    }

    #[test]
    fn every_command_has_its_page() {
        let whole = page(&[]).unwrap();
        assert!(whole.contains(".TH fieldmirror 1"), "{whole}");
        for command in program().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name().to_owned();
            assert!(page(&[&name]).unwrap().contains(&format!(".TH fieldmirror-{name} 1")), "{name}");
            let listed = format!("fieldmirror\\-{}(1)", name.replace('-', "\\-"));
            assert!(whole.contains(&listed), "{name} is not in {whole}");
        }
        assert!(page(&["key", "status"]).unwrap().contains("fieldmirror-key-status"));
        assert_eq!(page(&["names"]).unwrap_err().kind, Kind::UnknownName);
        assert_eq!(page(&["nothing"]).unwrap_err().kind, Kind::UnknownName);
    }
}
