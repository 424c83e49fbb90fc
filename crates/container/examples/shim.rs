//! The smallest binary that can be a shim: what tests start in place of `ferry`.

fn main() {
    container::intercept();
    eprintln!("this program is started by the container runtime");
    std::process::exit(2);
}
