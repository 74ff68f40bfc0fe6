//! What the measurements share: what processes cost, and how it is said.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

/// The most memory that a process ever held, in MiB.
pub fn peak_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a high-water mark");
    let kib: u32 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB");
    f64::from(kib) / 1024.0
}

/// Seconds of CPU of a process and of the children that it has waited for.
pub fn cpu(pid: u32) -> f64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    // Behind the name, which may hold anything: state is field 3, utime to cstime are 14 to 17.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u32 = fields.skip(11).take(4).filter_map(|ticks| ticks.parse::<u32>().ok()).sum();
    // A tick is a hundredth of a second on every Linux that we know of.
    f64::from(ticks) / 100.0
}

/// The server's own, and that of its processes that live. `folder` is where the private server keeps its data.
pub fn postgres_cpu(folder: &Path) -> f64 {
    let pid_file = fs::read_to_string(folder.join("postgres/data/postmaster.pid")).expect("the server runs");
    let pid: u32 = pid_file.lines().next().and_then(|line| line.trim().parse().ok()).expect("its process id");
    let mut tasks = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("the server lives").flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let _ = write!(tasks, "{children} ");
    }
    cpu(pid) + tasks.split_whitespace().filter_map(|child| child.parse().ok()).map(cpu).sum::<f64>()
}

pub fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("stdout");
}
