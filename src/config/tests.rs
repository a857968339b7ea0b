use std::collections::BTreeSet;

use clap::CommandFactory;

use super::*;

fn error(arguments: &[&str]) -> String {
    let arguments = ["blender-multiuser"].iter().chain(arguments);
    one_line(&Cli::read(arguments).unwrap_err())
}

#[test]
fn defaults() {
    let config = test_config(&[]);
    assert_eq!(config.port, 5555);
    assert_eq!(config.bind, Bind::All);
    assert!(config.admin_password.is_none() && config.server_password.is_none());
    assert_eq!(config.timeout, Duration::from_millis(5000));
    assert_eq!(config.grace, Duration::from_secs(5));
    assert_eq!(config.log_level, LevelFilter::INFO);
    assert_eq!(config.log_file, None);
    assert_eq!(
        config.data_dir,
        std::env::current_dir().unwrap().join("data")
    );
}

#[test]
fn versions_that_cannot_be_mixed_are_told() {
    let config = test_config(&["--versions", "0.9.9, 0.9.10,0.10.2"]);
    assert_eq!(
        *config.versions,
        ["0.9.9", "0.9.10", "0.10.2"].map(String::from)
    );
    let text = error(&["--versions", "0.9.10,0.8.3"]);
    assert!(
        text.contains("0.8.3 keeps scenes in another form than 0.9.10"),
        "{text}"
    );
    let text = error(&["--versions", "0.5.0"]);
    assert!(
        text.contains("'0.5.0' is not a version that is served"),
        "{text}"
    );
}

#[test]
fn an_empty_value_is_an_unset_one() {
    let flags = [
        "--port=",
        "--bind=",
        "--admin-password=",
        "--admin-password-file=",
        "--server-password=",
        "--server-password-file=",
        "--timeout=",
        "--grace=",
        "--versions=",
        "--log-level=",
        "--log-file=",
        "--data-dir=",
    ];
    assert_eq!(
        format!("{:?}", test_config(&flags)),
        format!("{:?}", test_config(&[]))
    );
}

#[test]
fn settings_stand_before_and_after_the_command() {
    for arguments in [["--port", "7000", "serve"], ["serve", "--port", "7000"]] {
        assert_eq!(test_config(&arguments).port, 7000);
    }
}

#[test]
fn ports_leave_room_for_their_followers() {
    assert_eq!(test_config(&["--port", "65532"]).port, 65532);
    assert_eq!(test_config(&["--port", "0"]).port, 0);
    for wrong in ["65533", "70000", "-1", "http", "55 55"] {
        let message = error(&["--port", wrong]);
        assert_eq!(message, error(&[&format!("--port={wrong}")]));
        assert!(
            message.contains("65532") && message.contains(wrong),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
    assert_eq!(Ports::starting_at(65533), None);
    assert_eq!(Ports::starting_at(0), None);
    assert_eq!(
        Ports::starting_at(5555).unwrap().to_string(),
        "command 5555, data 5556, TTL 5557, four-socket TTL 5558"
    );
}

#[test]
fn addresses() {
    let bind = |text| test_config(&["--bind", text]).bind;
    let only = |all: &[&str]| Bind::Only(all.iter().map(|a| a.parse().unwrap()).collect());
    assert_eq!(bind("10.0.0.1, [::1]"), only(&["10.0.0.1", "::1"]));
    assert_eq!(bind("localhost"), only(&["127.0.0.1", "::1"]));
    assert_eq!(bind(" , "), Bind::All);
    assert_eq!(Bind::All.addresses().len(), 2);
    assert!(error(&["--bind", "example.org"]).contains("example.org"));
}

#[test]
fn numbers_say_their_unit_and_range() {
    assert!(error(&["--timeout", "5"]).contains("milliseconds"));
    assert!(error(&["--timeout", "1e3"]).contains("1000 to 600000"));
    assert!(error(&["--grace", "-1"]).contains("0 to 3600 seconds"));
    assert_eq!(test_config(&["--grace", "0"]).grace, Duration::ZERO);
}

#[test]
fn levels_of_the_python_server_work() {
    for (name, level) in [
        ("WARNING", LevelFilter::WARN),
        ("CRITICAL", LevelFilter::ERROR),
        ("Debug", LevelFilter::DEBUG),
        ("NOTSET", LevelFilter::TRACE),
        ("trace", LevelFilter::TRACE),
    ] {
        assert_eq!(test_config(&["--log-level", name]).log_level, level);
    }
    assert!(error(&["--log-level", "loud"]).contains("info"));
}

#[test]
fn a_mistyped_flag_is_answered_with_the_right_one() {
    let message = error(&["--prot", "1"]);
    assert!(
        message.contains("--port") && !message.contains('\n'),
        "{message}"
    );
}

#[test]
fn passwords_come_from_a_file_or_directly_not_both() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from file\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = test_config(&["--server-password-file", path]);
    assert_eq!(config.server_password.unwrap().reveal(), "from file");
    for (password, file) in [
        ("-spwd", "--server-password-file"),
        ("--server-password", "--server-password-file"),
    ] {
        let both = ["x", file, path, password, "tops3cret"];
        let error = Cli::read(both).unwrap().config.with_passwords_of(None);
        assert_eq!(
            error.unwrap_err().to_string(),
            format!("{password} and {file} are both given; give one of them")
        );
    }
    let config = Cli::read(["x", "--server-password-file", "no-such"])
        .unwrap()
        .config;
    let error = format!("{:#}", config.with_passwords_of(None).unwrap_err());
    assert!(
        error.contains("--server-password-file") && error.contains("no-such"),
        "{error}"
    );
}

#[test]
fn credentials_stand_in_for_passwords_that_nobody_gives() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("admin_password"), "from manager\n").unwrap();
    std::fs::write(dir.path().join("server_password"), "").unwrap();
    let read = |arguments: &[&str]| {
        let arguments = ["x"].iter().chain(arguments);
        let config = Cli::read(arguments).unwrap().config;
        config.with_passwords_of(Some(dir.path())).unwrap()
    };
    let config = read(&["--admin-password="]);
    assert!(matches!(
        config.source("admin_password"),
        Source::Credential(_)
    ));
    assert_eq!(config.admin_password.unwrap().reveal(), "from manager");
    assert!(config.server_password.is_none());
    let config = read(&["-pwd", "mine"]);
    assert_eq!(config.admin_password.unwrap().reveal(), "mine");
    // One that is there and cannot be read, like this directory, does not leave the server open.
    std::fs::remove_file(dir.path().join("server_password")).unwrap();
    std::fs::create_dir(dir.path().join("server_password")).unwrap();
    let config = Cli::read(["x"]).unwrap().config;
    assert!(config.with_passwords_of(Some(dir.path())).is_err());
}

#[test]
fn debug_output_hides_passwords() {
    let config = test_config(&[
        "--admin-password",
        "tops3cret",
        "--server-password",
        "tops3cret",
    ]);
    assert!(!format!("{config:?}").contains("tops3cret"));
}

#[test]
fn the_example_environment_names_every_setting() {
    let mut named = BTreeSet::new();
    let mut why = "";
    for line in include_str!("../../.env.example").lines() {
        // Without blanks and quotes it means the same to compose, old compose and systemd.
        let setting = line.strip_prefix('#').unwrap_or(line);
        match setting.split_once('=') {
            Some((name, value)) if !name.contains(' ') => {
                assert!(!value.contains(['"', '\'', '$', ' ', '#']), "{line}");
                assert!(why.starts_with("# "), "{name} without a why");
                assert!(named.insert(name.to_owned()), "{name} twice");
            }
            _ => assert!(line.is_empty() || line.starts_with("# "), "{line}"),
        }
        why = line;
    }
    let mut settings: BTreeSet<String> = Cli::command()
        .get_arguments()
        .filter_map(|arg| Some(arg.get_env()?.to_str().unwrap().to_owned()))
        .collect();
    // Read by the compose file alone.
    settings.insert("LAST_PORT".into());
    assert_eq!(named, settings);
}
