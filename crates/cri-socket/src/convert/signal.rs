//! Signals: `SIGRTMIN+3` is `SIGNAL_SIGRTMINPLUS3` in the protocol.

use rpc::cri::Signal;

/// The protocol's value of a name or number; the runtime's default where it has none.
pub fn to(name: &str) -> Signal {
    let name = name.trim().to_ascii_uppercase();
    let name = match name.parse::<i32>() {
        Ok(number) => return by_number(number),
        Err(_) if name.starts_with("SIG") => name,
        Err(_) => format!("SIG{name}"),
    };
    let name = name.replace("MIN+", "MINPLUS").replace("MAX-", "MAXMINUS");
    Signal::from_str_name(&format!("SIGNAL_{name}")).unwrap_or(Signal::RuntimeDefault)
}

/// The name of a value; `None` for the runtime's default.
pub fn from(value: i32) -> Option<String> {
    let signal = Signal::try_from(value).ok().filter(|signal| *signal != Signal::RuntimeDefault)?;
    let name = signal.as_str_name().strip_prefix("SIGNAL_")?;
    Some(name.replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-"))
}

fn by_number(number: i32) -> Signal {
    const NUMBERS: [(i32, Signal); 9] = [
        (1, Signal::Sighup),
        (2, Signal::Sigint),
        (3, Signal::Sigquit),
        (6, Signal::Sigabrt),
        (9, Signal::Sigkill),
        (10, Signal::Sigusr1),
        (12, Signal::Sigusr2),
        (15, Signal::Sigterm),
        (28, Signal::Sigwinch),
    ];
    NUMBERS.iter().find(|(n, _)| *n == number).map_or(Signal::RuntimeDefault, |(_, signal)| *signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_both_ways() {
        for (name, signal) in [
            ("SIGTERM", Signal::Sigterm),
            ("SIGRTMIN+3", Signal::Sigrtminplus3),
            ("SIGRTMAX-14", Signal::Sigrtmaxminus14),
        ] {
            assert_eq!(to(name), signal);
            assert_eq!(from(signal as i32).as_deref(), Some(name));
        }
        assert_eq!((to("usr1"), to("9")), (Signal::Sigusr1, Signal::Sigkill));
        assert_eq!((to("nonsense"), from(0), from(1000)), (Signal::RuntimeDefault, None, None));
    }
}
