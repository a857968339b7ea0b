use super::*;

fn error(arguments: &[&str]) -> String {
    let arguments = ["blender-multiuser"].iter().chain(arguments);
    one_line(&Cli::try_parse_from(arguments).unwrap_err())
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
    assert_eq!(config.data_dir, PathBuf::from("data"));
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
        let message = error(&[&format!("--port={wrong}")]);
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
    assert!(
        error(&["--grace", "-1"]).contains("0 to 3600 seconds")
            || !error(&["--grace=-1"]).is_empty()
    );
    assert_eq!(test_config(&["--grace", "0"]).grace, Duration::ZERO);
}

#[test]
fn levels_of_the_python_server_work() {
    for (name, level) in [
        ("WARNING", LevelFilter::WARN),
        ("CRITICAL", LevelFilter::ERROR),
        ("Debug", LevelFilter::DEBUG),
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
    let both = [
        "x",
        "--server-password-file",
        path,
        "--server-password",
        "tops3cret",
    ];
    let error = Cli::try_parse_from(both)
        .unwrap()
        .config
        .with_password_files()
        .unwrap_err();
    assert!(!error.to_string().contains("tops3cret"), "{error}");
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
