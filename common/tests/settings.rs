//! The programs, the scripts and the Vagrantfile read `.env`. Each reads a set of files here, and all must find equal
//! values or print equal messages.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::env::Vars;

/// The first character of a message instead of a value.
const REFUSED: char = '\u{1}';

/// Prints, for each file, the value of KEY or the message, with a NUL after each.
const SCRIPT: &str = r#"
set -euo pipefail
source "$1/setup/lib/common/settings.sh"
die() { printf '\x01%s' "$1"; exit 1; }
for ((i = 0; i < $3; i++)); do
    (read_settings "$2/$i" && printf '%s' "${SETTINGS[KEY]-}") || true
    printf '\0'
done
"#;

/// Prints, for each file, the value of KEY or the message, by the functions of the Vagrantfile.
const RUBY: &str = r#"
vagrantfile = File.read(File.join(ARGV[0], "Vagrantfile"), encoding: "UTF-8")
eval(vagrantfile[/^def refuse.*?(?=^SETTINGS = )/m])
def abort(text) = raise(text.delete_prefix("Vagrantfile: "))
ARGV[2].to_i.times do |i|
  said = begin
    settings_in(File.join(ARGV[1], i.to_s)).fetch("KEY", "")
  rescue => error
    "\x01" + error.message
  end
  print said, "\0"
end
"#;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn folder_with(name: &str, files: &[Vec<u8>]) -> PathBuf {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for (index, file) in files.iter().enumerate() {
        fs::write(folder.join(index.to_string()), file).unwrap();
    }
    folder
}

/// The output of a reader: a value or a message for each file, without the folder's name.
fn said(command: &mut Command, folder: &Path, count: usize) -> Vec<String> {
    let output = command
        .arg(repository())
        .arg(folder)
        .arg(count.to_string())
        .env("LC_ALL", "C.UTF-8")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut all: Vec<_> = text.split('\0').map(|said| without(said, folder)).collect();
    assert_eq!(all.pop().as_deref(), Some(""));
    assert_eq!(all.len(), count);
    all
}

/// A message without the name of the file.
fn without(said: &str, folder: &Path) -> String {
    let Some(sentence) = said.strip_prefix(REFUSED) else {
        return said.to_owned();
    };
    let sentence = sentence
        .strip_prefix(folder.to_str().unwrap())
        .unwrap_or_else(|| panic!("this does not name the file: {sentence}"))
        .split_once(' ')
        .unwrap();
    format!("{REFUSED}{}", sentence.1)
}

fn said_by_program(file: &Path) -> String {
    match Vars::from_file(file) {
        Ok(vars) => vars.optional("KEY").unwrap_or_default().to_owned(),
        Err(error) => {
            let sentence = error.to_string();
            let problem = sentence.split_once(", which ").unwrap().1.to_owned();
            format!("{REFUSED}{problem}")
        }
    }
}

/// The value or the message of each file, on which all readers must agree.
fn agreed(name: &str, files: &[Vec<u8>]) -> Vec<String> {
    let folder = folder_with(name, files);
    let count = files.len();
    let by_scripts = said(
        Command::new("bash").args(["-c", SCRIPT, "bash"]),
        &folder,
        count,
    );
    // Ruby is part of Vagrant, which setup/test.sh installs if there is a package.
    let by_vagrantfile = if Command::new("ruby").arg("--version").output().is_ok() {
        said(Command::new("ruby").args(["-e", RUBY]), &folder, count)
    } else {
        by_scripts.clone()
    };
    for (index, file) in files.iter().enumerate() {
        let by_program = said_by_program(&folder.join(index.to_string()));
        let shown = String::from_utf8_lossy(file);
        assert_eq!(
            by_program, by_scripts[index],
            "program and scripts: {shown}"
        );
        assert_eq!(
            by_program, by_vagrantfile[index],
            "program and Vagrantfile: {shown}"
        );
    }
    fs::remove_dir_all(&folder).unwrap();
    by_scripts
}

/// Each printable character at the begin, in the middle and at the end of a value, alone, and before and after
/// characters with a meaning.
fn values() -> BTreeSet<String> {
    let characters = (' '..='~').chain(['\t', 'ü', 'Ж', '漢', '🎬']);
    characters
        .flat_map(|c| {
            [
                format!("{c}ab"),
                format!("a{c}b"),
                format!("ab{c}"),
                format!("{c}"),
                format!("{c}{c}"),
                format!("a{c}'b"),
                format!("a'{c}"),
                format!("a\\{c}"),
                format!("{c}\\"),
                format!("a {c}b"),
                format!("a{c} #b"),
            ]
        })
        .collect()
}

#[test]
fn a_value_between_single_quotes_is_read_alike_by_all_whatever_is_in_it() {
    let values: Vec<_> = values().into_iter().collect();
    let files: Vec<_> = values
        .iter()
        .map(|value| format!("KEY='{}'\n", value.replace('\'', r"'\''")).into_bytes())
        .collect();

    assert_eq!(agreed("single", &files), values);
}

#[test]
fn a_value_without_quotes_or_between_double_ones_is_read_alike_by_all_or_refused_alike() {
    let files: Vec<_> = values()
        .iter()
        .flat_map(|value| {
            [
                format!("KEY={value}\n"),
                format!("export KEY = {value}\n"),
                format!("KEY=\"{value}\"\n"),
                format!("KEY='{value}' # note"),
                value.clone(),
            ]
        })
        .map(String::into_bytes)
        .collect();

    let said = agreed("other", &files);

    assert!(said.iter().any(|said| said.starts_with(REFUSED)));
    assert!(said.iter().any(|said| said == "a#b"));
}

#[test]
fn a_file_of_any_encoding_is_read_alike_by_all_or_refused_alike() {
    let utf16 = |text: &str| {
        text.encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<_>>()
    };
    let files = vec![
        b"\xef\xbb\xbfKEY=1\r\nB=2\r\n".to_vec(),
        b"\xef\xbb\xbf# note\nKEY=1".to_vec(),
        utf16("\u{feff}KEY=1\r\n"),
        utf16("KEY=1\r\n"),
        b"# f\xfcr\nKEY=1\n".to_vec(),
        b"B=2\nKEY=\xfc\n".to_vec(),
        b"KEY=1\rB=2\n".to_vec(),
        b"KEY=\x1b[0m\n".to_vec(),
        b"KEY=1\nKEY=2\n".to_vec(),
        b"\n\n \t\nKEY= # note\n".to_vec(),
        b"KEY=a\xc2\xa0b\xe2\x80\xa8c\n".to_vec(),
        b"".to_vec(),
    ];
    let refused = |sentence: &str| format!("{REFUSED}{sentence}");

    assert_eq!(
        agreed("encoding", &files),
        [
            "1".to_owned(),
            "1".to_owned(),
            refused("is UTF-16: save it as UTF-8"),
            refused("is UTF-16: save it as UTF-8"),
            refused("is not UTF-8 in line 1: save it as UTF-8"),
            refused("is not UTF-8 in line 2: save it as UTF-8"),
            refused("has a control character in line 1: remove it"),
            refused("has a control character in line 1: remove it"),
            "2".to_owned(),
            String::new(),
            "a\u{a0}b\u{2028}c".to_owned(),
            String::new(),
        ]
    );
}

#[test]
fn what_the_scripts_write_is_what_they_were_given() {
    let values: Vec<_> = values().into_iter().collect();
    let folder = folder_with(
        "given",
        &values
            .iter()
            .map(|value| value.clone().into_bytes())
            .collect::<Vec<_>>(),
    );
    let script = r#"
        source "$1/setup/lib/common/settings.sh"
        for ((i = 0; i < $3; i++)); do
            IFS= read -rd '' value <"$2/$i"
            printf 'KEY=%s\0' "$(quoted "$value")"
        done"#;
    let files = said(
        Command::new("bash").args(["-c", script, "bash"]),
        &folder,
        values.len(),
    );
    let files: Vec<_> = files.into_iter().map(String::into_bytes).collect();

    assert_eq!(agreed("written", &files), values);
    fs::remove_dir_all(&folder).unwrap();
}
