//! Label and field selectors, and quantities, which stand beside them in queries and specs.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(selector) = meta::LabelSelector::parse(text) {
        let written = selector.to_string();
        let again = meta::LabelSelector::parse(&written).expect("written by us");
        assert_eq!(written, again.to_string());
    }
    let _ = meta::FieldSelector::parse(text);
    if let Ok(quantity) = meta::Quantity::parse(text) {
        let written = quantity.to_string();
        assert_eq!(meta::Quantity::parse(&written).expect("written by us").to_string(), written);
    }
});
