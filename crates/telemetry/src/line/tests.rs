use super::*;

fn at(seconds: u64, micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros)
}

fn line(msg: &str, labels: &[Label<'_>]) -> String {
    let mut out = Vec::new();
    write_json(&mut out, Level::Info, Stamp::At(at(0, 0)), None, msg, b"", labels);
    String::from_utf8(out).unwrap()
}

#[test]
fn dates_agree_with_known_moments() {
    // Second counts from `date -u -d <date> +%s`.
    for (seconds, micros, want) in [
        (0, 0, "1970-01-01T00:00:00.000000Z"),
        (951_782_400, 1, "2000-02-29T00:00:00.000001Z"),
        (951_868_799, 999_999, "2000-02-29T23:59:59.999999Z"),
        (951_868_800, 0, "2000-03-01T00:00:00.000000Z"),
        (1_709_164_800, 0, "2024-02-29T00:00:00.000000Z"),
        (1_735_689_599, 0, "2024-12-31T23:59:59.000000Z"),
        (1_785_576_600, 120_000, "2026-08-01T09:30:00.120000Z"),
        (4_107_542_400, 0, "2100-03-01T00:00:00.000000Z"),
    ] {
        assert_eq!(LineTime(Utc::from(at(seconds, micros))).to_string(), want);
    }
}

#[test]
fn every_day_follows_the_day_before() {
    let mut before = Utc::from(at(0, 0));
    for day in 1..=50_000_u64 {
        let now = Utc::from(at(day * 86_400, 0));
        let next = now.day == before.day + 1 && now.month == before.month && now.year == before.year;
        let month = now.day == 1 && now.month == before.month + 1 && now.year == before.year;
        let year = (now.day, now.month, before.month) == (1, 1, 12) && now.year == before.year + 1;
        assert!(next || month || year, "{before:?} then {now:?}");
        before = now;
    }
}

#[test]
fn a_clock_before_1970_gives_a_line_all_the_same() {
    let moment = UNIX_EPOCH - Duration::from_secs(5);
    assert_eq!(LineTime(Utc::from(moment)).to_string(), "1970-01-01T00:00:00.000000Z");
}

#[test]
fn file_stamps_have_milliseconds_and_no_colons() {
    assert_eq!(Utc::from(at(1_785_576_600, 123_999)).file_stamp(), "2026-08-01T09-30-00.123");
}

#[test]
fn keys_come_in_order_and_labels_after_them() {
    let mut out = Vec::new();
    let mut rendered = Vec::new();
    write_labels(&mut rendered, &[("pod", &"shop/cart-1")]);
    write_json(
        &mut out,
        Level::Warn,
        Stamp::At(at(1_785_576_600, 42)),
        None,
        "hello",
        &rendered,
        &[("if", &"eth0"), ("n", &7)],
    );
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "{\"level\":\"warn\",\"time\":\"2026-08-01T09:30:00.000042Z\",\"msg\":\"hello\",\
         \"pod\":\"shop/cart-1\",\"if\":\"eth0\",\"n\":\"7\"}\n"
    );
}

#[test]
fn any_text_stays_one_line_and_reads_back() {
    for text in
        ["", "a\"b\\c", "line\nbreak\r\ttab", "\u{0}\u{1}\u{1f}\u{7f}", "höhe \u{2028} 🦀", "{\"a\":1}"]
    {
        let made = line(text, &[(text, &text)]);
        assert_eq!(made.matches('\n').count(), 1, "{made:?}");
        let read: serde_json::Value = serde_json::from_str(&made).unwrap();
        assert_eq!(read["msg"], text);
        assert_eq!(read[text], text);
    }
}

#[test]
fn a_huge_value_is_cut_at_a_character() {
    let huge = "é".repeat(1 << 20);
    let made = line("m", &[("a", &format!("x{huge}")), ("b", &"after")]);
    let read: serde_json::Value = serde_json::from_str(&made).unwrap();
    let kept = read["a"].as_str().unwrap();
    assert!(kept.ends_with(CUT_MARK), "{}", &kept[kept.len() - 20..]);
    assert!(kept.len() <= VALUE_MAX_BYTES + CUT_MARK.len());
    assert!(kept.len() >= VALUE_MAX_BYTES);
    assert_eq!(read["b"], "after");
}
