//! Running the kernel's tools: an error quotes what they said.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Runs to the end; standard output.
pub fn run(line: &[&str]) -> Result<String, String> {
    feed(line, "")
}

/// The same with standard input.
pub fn feed(line: &[&str], input: &str) -> Result<String, String> {
    let shown = line.join(" ");
    let fail = |why: String| format!("{shown}: {why}");
    let mut child = Command::new(line[0])
        .args(&line[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| fail(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(|e| fail(e.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|e| fail(e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(fail(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

/// The pid in a name `<prefix><pid in hex><rest>` if that process is gone: what it left behind may be removed.
pub fn left_by_the_dead(name: &str, prefix: &str) -> bool {
    let Some(rest) = name.strip_prefix(prefix) else { return false };
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    match u32::from_str_radix(&digits, 16) {
        Ok(pid) => !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_tool_and_what_it_said() {
        assert_eq!(feed(&["cat"], "a b"), Ok("a b".to_owned()));
        let error = run(&["ls", "/no/such/place"]).unwrap_err();
        assert!(
            error.starts_with("ls /no/such/place: exit status") && error.contains("No such file"),
            "{error}"
        );
        assert!(run(&["no-such-tool"]).is_err());
    }

    #[test]
    fn only_names_of_dead_processes_are_left_over() {
        let own = std::process::id();
        assert!(!left_by_the_dead(&format!("crl{own:x}n1"), "crl"));
        assert!(left_by_the_dead("crlfffffffn1", "crl"));
        assert!(!left_by_the_dead("eth0", "crl") && !left_by_the_dead("crl", "crl"));
    }
}
