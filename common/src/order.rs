//! An order: the message in the queue. The gateway checks its rules before it answers the client, and the consumer
//! checks them again, since any publisher may have put a message into the queue.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The most characters that a `user_id` may have.
const USER_ID_CHARS_MAX: usize = 50;

/// The most digits before the point of a `total_amount`.
const AMOUNT_DIGITS_MAX: usize = 10;

/// The most characters of a JSON number in plain digits: those of a `user_id`, which may have more than the other
/// fields.
const NUMBER_CHARS_MAX: usize = USER_ID_CHARS_MAX;

/// The most bytes that the body of a request with an order may have.
pub const ORDER_BYTES_MAX: usize = 16 * 1024;

const USER_ID_RULE: &str = "must have 1 to 50 characters, none of them NUL";
const NUMBER_OF_ITEMS_RULE: &str = "must be a whole number from 1 to 2147483647";
const TOTAL_AMOUNT_RULE: &str =
    "must be a number from 0 to 9999999999.99 in plain digits, with at most two after the point";

/// An order. Every value follows all rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOrder {
    /// The user who placed the order: 1 to 50 characters.
    pub user_id: String,
    /// The number of items: 1 or more.
    pub number_of_items: i32,
    /// The total amount.
    pub total_amount: Amount,
}

/// An exact amount of money in hundredths: 0.00 to 9999999999.99.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    cents: u64,
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.cents / 100, self.cents % 100)
    }
}

/// The fields of the message. A string must have plain digits. A JSON number counts by its value, which is read
/// from its text, since a float would lose cents.
#[derive(Deserialize, Serialize)]
struct Fields<'a> {
    #[serde(borrow)]
    user_id: Option<&'a RawValue>,
    #[serde(borrow)]
    number_of_items: Option<&'a RawValue>,
    #[serde(borrow)]
    total_amount: Option<&'a RawValue>,
}

impl NewOrder {
    /// Reads an order from the body of a request or of a message. Other fields are ignored.
    pub fn from_json(body: &[u8]) -> Result<Self, OrderError> {
        Self::from_fields(&Fields::from_json(body)?)
    }

    /// Reads an order from the body of a request. Returns with it the body of the message, which has the fields of
    /// an order, each as the client wrote it, and nothing else.
    pub fn with_message(body: &[u8]) -> Result<(Self, Vec<u8>), OrderError> {
        let fields = Fields::from_json(body)?;
        let order = Self::from_fields(&fields)?;
        let message = serde_json::to_vec(&fields)
            .map_err(|error| OrderError::whole(format!("cannot be written: {error}")))?;
        Ok((order, message))
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self, OrderError> {
        Ok(Self {
            user_id: field("user_id", USER_ID_RULE, fields.user_id, user_id)?,
            number_of_items: field(
                "number_of_items",
                NUMBER_OF_ITEMS_RULE,
                fields.number_of_items,
                number_of_items,
            )?,
            total_amount: field(
                "total_amount",
                TOTAL_AMOUNT_RULE,
                fields.total_amount,
                amount,
            )?,
        })
    }
}

impl<'a> Fields<'a> {
    fn from_json(body: &'a [u8]) -> Result<Self, OrderError> {
        let text = std::str::from_utf8(body).map_err(|_| OrderError::whole("is not UTF-8"))?;
        if !text.trim_ascii_start().starts_with('{') {
            return Err(OrderError::whole("is not a JSON object"));
        }
        serde_json::from_str(text)
            .map_err(|error| OrderError::whole(format!("is not a JSON object: {error}")))
    }
}

/// The value of a field, if its text follows the rule of the field.
fn field<T>(
    name: &'static str,
    rule: &'static str,
    value: Option<&RawValue>,
    read: fn(&str) -> Option<T>,
) -> Result<T, OrderError> {
    let text = text_of(name, value)?;
    text.as_deref()
        .and_then(read)
        .ok_or(OrderError::field(name, rule))
}

/// The text of a string, or a number in plain digits; None for a number with too many digits.
fn text_of(name: &'static str, value: Option<&RawValue>) -> Result<Option<String>, OrderError> {
    let json = value.ok_or(OrderError::field(name, "is required"))?.get();
    match json.as_bytes() {
        [b'"', ..] => serde_json::from_str(json)
            .map(Some)
            .map_err(|_| OrderError::field(name, "is not a well-formed string")),
        [b'-' | b'0'..=b'9', ..] => Ok(plain_digits(json)),
        _ => Err(OrderError::field(name, "must be a string or a number")),
    }
}

/// The value of a JSON number in plain digits, without insignificant zeros: `1.50e3` is `1500`, and `-0.0` is `0`.
/// None for more than [`NUMBER_CHARS_MAX`] characters, which are counted before they are written, since an
/// exponent may be large.
fn plain_digits(number: &str) -> Option<String> {
    let (sign, number) = match number.strip_prefix('-') {
        Some(number) => ("-", number),
        None => ("", number),
    };
    let (decimal, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = decimal.split_once('.').unwrap_or((decimal, ""));
    let digits = format!("{whole}{fraction}");
    let without_zeros_before = digits.trim_start_matches('0');
    let counting = without_zeros_before.trim_end_matches('0');
    if counting.is_empty() {
        return Some("0".to_owned());
    }
    // The number of significant digits before the point; if it is negative, zeros follow the point.
    let zeros_before = digits.len() - without_zeros_before.len();
    let before_point = i64::try_from(whole.len()).ok()? - i64::try_from(zeros_before).ok()?
        + i64::from(exponent.parse::<i32>().ok()?);
    if counting.len() > NUMBER_CHARS_MAX || before_point.unsigned_abs() > NUMBER_CHARS_MAX as u64 {
        return None;
    }
    let text = match usize::try_from(before_point) {
        Ok(before @ 1..) if before < counting.len() => {
            format!("{sign}{}.{}", &counting[..before], &counting[before..])
        }
        Ok(before @ 1..) => format!("{sign}{counting:0<before$}"),
        _ => {
            let after = counting.len() + usize::try_from(-before_point).ok()?;
            format!("{sign}0.{counting:0>after$}")
        }
    };
    (text.len() <= NUMBER_CHARS_MAX).then_some(text)
}

fn user_id(text: &str) -> Option<String> {
    // A character has at most four bytes, so the characters of a long text need not be counted.
    let fits = text.len() <= 4 * USER_ID_CHARS_MAX && text.chars().count() <= USER_ID_CHARS_MAX;
    (fits && !text.is_empty() && !text.contains('\0')).then(|| text.to_owned())
}

fn number_of_items(text: &str) -> Option<i32> {
    let number = is_digits(text).then(|| text.parse().ok()).flatten();
    number.filter(|number| *number >= 1)
}

fn amount(text: &str) -> Option<Amount> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !is_digits(whole) || whole.len() > AMOUNT_DIGITS_MAX || !is_digits(fraction) {
        return None;
    }
    let hundredths: u64 = match fraction.len() {
        1 => fraction.parse::<u64>().ok()? * 10,
        2 => fraction.parse().ok()?,
        _ => return None,
    };
    Some(Amount {
        cents: whole.parse::<u64>().ok()? * 100 + hundredths,
    })
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// The rule that an order breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderError {
    field: Option<&'static str>,
    problem: String,
}

impl OrderError {
    fn field(field: &'static str, problem: &str) -> Self {
        Self {
            field: Some(field),
            problem: problem.to_owned(),
        }
    }

    fn whole(problem: impl Into<String>) -> Self {
        Self {
            field: None,
            problem: problem.into(),
        }
    }

    /// The field whose rule is broken; None if the body as a whole is not an order.
    #[must_use]
    pub fn at_fault(&self) -> Option<&'static str> {
        self.field
    }
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field.unwrap_or("the body"), self.problem)
    }
}

impl std::error::Error for OrderError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(user_id: &str, number_of_items: &str, total_amount: &str) -> Result<NewOrder, String> {
        let body = format!(
            r#"{{"user_id":{user_id},"number_of_items":{number_of_items},"total_amount":{total_amount}}}"#
        );
        NewOrder::from_json(body.as_bytes()).map_err(|error| error.to_string())
    }

    fn refused(body: &[u8]) -> String {
        NewOrder::from_json(body).unwrap_err().to_string()
    }

    #[test]
    fn each_field_may_be_a_string_or_a_number() {
        let expected = NewOrder {
            user_id: "20".to_owned(),
            number_of_items: 99,
            total_amount: Amount { cents: 25_000 },
        };

        assert_eq!(
            order(r#""20""#, r#""99""#, r#""250.00""#),
            Ok(expected.clone())
        );
        assert_eq!(order("20", "99", "250"), Ok(expected));
    }

    #[test]
    fn amounts_are_kept_exactly() {
        for (written, kept) in [
            (r#""180""#, "180.00"),
            ("180", "180.00"),
            ("29.99", "29.99"),
            (r#""29.9""#, "29.90"),
            ("0", "0.00"),
            ("9999999999.99", "9999999999.99"),
            ("1e2", "100.00"),
            ("1E+2", "100.00"),
            ("1.5e3", "1500.00"),
            ("29.990", "29.99"),
            ("2999000e-5", "29.99"),
            ("0.00000000000000000001e20", "1.00"),
            ("-0", "0.00"),
            ("-0.0e-5", "0.00"),
            ("0e99999999999999999999", "0.00"),
        ] {
            let order = order("1", "1", written).expect(written);
            assert_eq!(order.total_amount.to_string(), kept, "{written}");
        }
    }

    #[test]
    fn amounts_that_break_the_rule_are_refused_by_name() {
        for written in [
            r#""NaN""#,
            "-1",
            "1e400",
            r#""abc""#,
            "29.999",
            "10000000000",
            r#""""#,
            r#"" 1""#,
            r#""+1""#,
            r#"".5""#,
            r#""5.""#,
            r#""1.2.3""#,
            r#""1E2""#,
            r#""29.990""#,
            r#""-0""#,
            r#""Infinity""#,
            r#""1_000""#,
            "1e10",
            "1e-3",
            "1e-400",
            "-1e-400",
            "1e99999999999999999999",
            "1e-99999999999999999999",
        ] {
            let problem = order("1", "1", written).expect_err(written);
            assert!(
                problem.starts_with("total_amount must be a number from 0"),
                "{written}: {problem}"
            );
        }
    }

    #[test]
    fn numbers_of_items_that_break_the_rule_are_refused_by_name() {
        for written in [
            "0",
            "-1",
            "2147483648",
            "1.5",
            "1e-1",
            "2147483647.1",
            "1e400",
            r#""1.0""#,
            r#""1e2""#,
            r#""+1""#,
            r#""""#,
            r#""one""#,
        ] {
            let problem = order("1", written, "1").expect_err(written);
            assert!(
                problem.starts_with("number_of_items must be a whole"),
                "{written}: {problem}"
            );
        }
        for (written, kept) in [
            ("2147483647", i32::MAX),
            ("99.0", 99),
            ("1e2", 100),
            ("120.00e-1", 12),
        ] {
            let order = order("1", written, "1").expect(written);
            assert_eq!(order.number_of_items, kept, "{written}");
        }
    }

    #[test]
    fn a_user_id_has_1_to_50_characters() {
        let quoted = |text: String| format!("\"{text}\"");

        assert!(order(&quoted("ü".repeat(50)), "1", "1").is_ok());
        for written in [
            quoted("ü".repeat(51)),
            quoted(String::new()),
            quoted("a\\u0000b".to_owned()),
        ] {
            let problem = order(&written, "1", "1").expect_err(&written);
            assert!(
                problem.starts_with("user_id must have 1 to 50"),
                "{written}: {problem}"
            );
        }
    }

    #[test]
    fn a_user_id_that_is_a_number_is_its_plain_digits() {
        for (written, kept) in [
            ("20", "20"),
            ("20.0", "20"),
            ("2e1", "20"),
            ("1.5", "1.5"),
            ("-7.50", "-7.5"),
            ("15e-3", "0.015"),
            ("-0", "0"),
            ("1e49", &format!("1{}", "0".repeat(49))),
            ("1e-48", &format!("0.{}1", "0".repeat(47))),
        ] {
            assert_eq!(order(written, "1", "1").expect(written).user_id, kept);
        }
        let many_digits = "9".repeat(16_000);
        for written in [
            "1e50",
            "-1e49",
            "1e-49",
            "1e400",
            "1e-400",
            &many_digits,
            &format!("1e{many_digits}"),
            &format!("1e-{many_digits}"),
        ] {
            let problem = order(written, "1", "1").expect_err(written);
            assert!(
                problem.starts_with("user_id must have 1 to 50"),
                "{problem}"
            );
        }
    }

    #[test]
    fn a_field_that_is_missing_or_of_another_kind_is_named() {
        assert_eq!(
            refused(br#"{"user_id":"1","total_amount":1}"#),
            "number_of_items is required"
        );
        assert_eq!(
            order("null", "1", "1"),
            Err("user_id is required".to_owned())
        );
        for written in ["true", "[]", "{}"] {
            let problem = order("1", "1", written).expect_err(written);
            assert_eq!(problem, "total_amount must be a string or a number");
        }
        assert_eq!(
            order(r#""\ud800""#, "1", "1"),
            Err("user_id is not a well-formed string".to_owned())
        );
    }

    #[test]
    fn a_body_that_is_no_json_object_is_refused() {
        for body in [&b""[..], b"[\"1\",1,1]", b"null", b"hello", b"\xff"] {
            assert!(refused(body).starts_with("the body is not"), "{body:?}");
        }
        assert!(refused(b"{\"user_id\":\"1\",").starts_with("the body is not a JSON object: "));
        let twice = br#"{"user_id":1,"user_id":2,"number_of_items":1,"total_amount":1}"#;
        assert!(refused(twice).contains("duplicate field `user_id`"));
    }

    #[test]
    fn fields_that_an_order_does_not_have_are_ignored() {
        let body = br#" {"user_id":1,"number_of_items":1,"total_amount":1,"note":{"gift":true}}"#;

        assert!(NewOrder::from_json(body).is_ok());
    }

    /// JSON values that are often valid for a field, in unusual notations.
    fn values() -> impl Strategy<Value = String> {
        let escapes = prop_oneof![
            Just("\\u0041"),
            Just("\\u0000"),
            Just("\\ud83d\\ude00"),
            Just("\\ud83d"),
            Just("\\ude00\\ud83d"),
            Just("\\uFFFF"),
            Just("\\\""),
            Just("\\/"),
            Just("\\x"),
            Just("\u{7f}\u{2028}\u{fffd}\u{10ffff}"),
            Just("\u{1}"),
        ];
        prop_oneof![
            8 => (0..=200_u32).prop_map(|number| number.to_string()),
            4 => (0..=200_u32).prop_map(|number| format!("\"{number}\"")),
            4 => "-?(0|[1-9][0-9]{0,12})(\\.[0-9]{1,12})?([eE][-+]?[0-9]{1,4})?",
            1 => ("[0-9]", 0..2000_usize).prop_map(|(digit, zeros)| {
                format!("{digit}{}e-{zeros}", "0".repeat(zeros))
            }),
            1 => (1..2000_usize).prop_map(|zeros| format!("0.{}1e{zeros}", "0".repeat(zeros - 1))),
            2 => proptest::collection::vec(escapes, 0..4)
                .prop_map(|escapes| format!("\"{}\"", escapes.concat())),
            1 => "\"\\PC{0,60}\"",
            1 => "[\\[\\]{}tnul:,\" ]{1,5}",
        ]
    }

    /// Objects of an order's fields in any order, some twice, missing, or under a name with escapes.
    fn bodies() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            1 => Just("user\\u005Fid".to_owned()),
            1 => Just("user_id\\u0000".to_owned()),
            1 => Just("note".to_owned()),
            1 => "\\PC{0,8}",
        ];
        let fields = ["user_id", "number_of_items", "total_amount"];
        let fields = fields.map(|name| values().prop_map(move |value| (name.to_owned(), value)));
        let more = proptest::collection::vec((name, values()), 0..3);
        let shuffled = (fields, more)
            .prop_map(|(fields, more)| fields.into_iter().chain(more).collect::<Vec<_>>())
            .prop_shuffle();
        (shuffled, "[ \t\r\n]{0,2}").prop_map(|(fields, space)| {
            let fields = fields
                .into_iter()
                .map(|(name, value)| format!("{space}\"{name}\"{space}:{space}{value}{space}"));
            format!("{{{}}}{space}", fields.collect::<Vec<_>>().join(","))
        })
    }

    proptest! {
        #[test]
        fn every_amount_in_range_comes_back_as_it_was_written(cents in 0_u64..=999_999_999_999) {
            let written = Amount { cents }.to_string();
            for json in [written.clone(), format!("\"{written}\"")] {
                prop_assert_eq!(order("1", "1", &json).unwrap().total_amount, Amount { cents });
            }
        }

        #[test]
        fn every_number_of_items_in_range_is_taken_and_no_other(number in any::<i64>()) {
            let taken = order("1", &number.to_string(), "1").ok().map(|order| order.number_of_items);
            prop_assert_eq!(taken, i32::try_from(number).ok().filter(|number| *number >= 1));
        }

        /// The model counts in units of 10^-24, which is exact for all numbers of this test.
        #[test]
        fn a_json_number_is_read_as_the_shortest_plain_digits_of_its_value(
            sign in prop_oneof![Just("-"), Just("")],
            digits in 0_u64..1_000_000,
            places in 0_u32..=12,
            exponent in -12_i32..=6,
            zeros in "0{0,3}",
        ) {
            let (whole, part) = (digits / 10_u64.pow(places), digits % 10_u64.pow(places));
            let written = match usize::try_from(places).unwrap() {
                0 => format!("{sign}{whole}e{exponent}"),
                width => format!("{sign}{whole}.{part:0width$}{zeros}e{exponent}"),
            };
            let power = exponent - i32::try_from(places).unwrap() + 24;
            let units = i128::from(digits) * 10_i128.pow(u32::try_from(power).unwrap());

            let plain = plain_digits(&written).expect(&written);

            let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
            let seen: i128 = format!("{whole}{fraction:0<24}").parse().unwrap();
            prop_assert_eq!(seen, if sign == "-" { -units } else { units }, "{}", written);
            let whole = whole.trim_start_matches('-');
            prop_assert!(whole == "0" || !whole.starts_with('0'), "{}", plain);
            prop_assert!(!fraction.ends_with('0') && !plain.ends_with('.') && plain != "-0");
        }

        #[test]
        fn an_amount_is_its_value_wherever_its_point_stands(
            cents in 0_u64..=999_999_999_999,
            zeros in 0_usize..40,
        ) {
            let (digits, moved) = (cents.to_string(), "0".repeat(zeros));
            for written in [
                format!("{cents}{moved}e-{}", zeros + 2),
                format!("0.{moved}{cents}E{}", (zeros + digits.len()).cast_signed() - 2),
            ] {
                let read = order("1", "1", &written).map(|order| order.total_amount);
                prop_assert_eq!(read, Ok(Amount { cents }), "{}", written);
            }
        }

        #[test]
        fn no_text_at_all_makes_an_amount_out_of_range_or_a_panic(text in "[-+0-9.eE ]{0,16}") {
            if let Some(amount) = amount(&text) {
                prop_assert!(amount.cents <= 999_999_999_999);
                let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
                let canonical = format!("{}.{fraction:0<2}", whole.parse::<u64>().unwrap());
                prop_assert_eq!(amount.to_string(), canonical);
            }
        }

        #[test]
        fn the_message_of_an_order_is_read_as_the_order_that_was_placed(
            body in bodies(),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = &body.as_bytes()[..cut.index(2 * body.len()).min(body.len())];
            let read = NewOrder::from_json(cut);
            let placed = NewOrder::with_message(cut);

            prop_assert_eq!(placed.as_ref().map(|(order, _)| order), read.as_ref());
            if let Ok((order, message)) = placed {
                prop_assert_eq!(NewOrder::from_json(&message), Ok(order.clone()));
                let (_, again) = NewOrder::with_message(&message).unwrap();
                prop_assert_eq!(again, message);
                prop_assert!((1..=50).contains(&order.user_id.chars().count()));
                prop_assert!(!order.user_id.contains('\0') && order.number_of_items >= 1);
                prop_assert!(order.total_amount.cents <= 999_999_999_999);
            }
        }

        #[test]
        fn no_bytes_at_all_make_a_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = NewOrder::from_json(&body);
        }
    }
}
