//! An order: the message that crosses the queue. Its rules are the same at the gateway, which
//! answers the client, and at the consumer, which meets messages that strangers put there.

use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The most characters that a `user_id` may have.
const USER_ID_CHARS_MAX: usize = 50;

/// The most digits before the point of a `total_amount`.
const AMOUNT_DIGITS_MAX: usize = 10;

/// An order that keeps all rules; there is no other kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOrder {
    /// Who ordered: 1 to 50 characters.
    pub user_id: String,
    /// How many: 1 or more.
    pub number_of_items: i32,
    /// For how much.
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

/// The fields as they stand in the message. Numbers are kept as text: through a float,
/// 0.07 + 0.01 cents would be lost before anyone looked.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    user_id: Option<&'a RawValue>,
    #[serde(borrow)]
    number_of_items: Option<&'a RawValue>,
    #[serde(borrow)]
    total_amount: Option<&'a RawValue>,
}

impl NewOrder {
    /// Reads an order from the body of a request or of a message. Fields that it does not know
    /// are ignored.
    pub fn from_json(body: &[u8]) -> Result<Self, OrderError> {
        let text = std::str::from_utf8(body).map_err(|_| OrderError::whole("is not UTF-8"))?;
        if !text.trim_ascii_start().starts_with('{') {
            return Err(OrderError::whole("is not a JSON object"));
        }
        let fields: Fields<'_> = serde_json::from_str(text)
            .map_err(|error| OrderError::whole(format!("is not a JSON object: {error}")))?;
        Ok(Self {
            user_id: user_id(&text_of("user_id", fields.user_id)?)?,
            number_of_items: number_of_items(&text_of("number_of_items", fields.number_of_items)?)?,
            total_amount: total_amount(&text_of("total_amount", fields.total_amount)?)?,
        })
    }
}

/// The text of a string, or the digits of a number as they were written.
fn text_of(field: &'static str, value: Option<&RawValue>) -> Result<String, OrderError> {
    let json = value.ok_or(OrderError::field(field, "is required"))?.get();
    match json.as_bytes() {
        [b'"', ..] => serde_json::from_str(json)
            .map_err(|_| OrderError::field(field, "is not a well-formed string")),
        [b'-' | b'0'..=b'9', ..] => Ok(json.to_owned()),
        _ => Err(OrderError::field(field, "must be a string or a number")),
    }
}

fn user_id(text: &str) -> Result<String, OrderError> {
    let rule = OrderError::field("user_id", "must have 1 to 50 characters, none of them NUL");
    // A character has four bytes at most: a megabyte need not be counted.
    let too_long = text.len() > 4 * USER_ID_CHARS_MAX || text.chars().count() > USER_ID_CHARS_MAX;
    if text.is_empty() || too_long || text.contains('\0') {
        Err(rule)
    } else {
        Ok(text.to_owned())
    }
}

fn number_of_items(text: &str) -> Result<i32, OrderError> {
    let number = if is_digits(text) {
        text.parse().ok()
    } else {
        None
    };
    number
        .filter(|number| *number >= 1)
        .ok_or(OrderError::field(
            "number_of_items",
            "must be a whole number from 1 to 2147483647",
        ))
}

fn total_amount(text: &str) -> Result<Amount, OrderError> {
    amount(text).ok_or(OrderError::field(
        "total_amount",
        "must be a number from 0 to 9999999999.99 in plain digits, with at most two after the point",
    ))
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

/// Which rule an order breaks.
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

    /// The field whose rule is broken; None where the body as a whole is no order.
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
            "1E2",
            r#""Infinity""#,
            r#""1_000""#,
            "-0",
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
            "1.0",
            "1e2",
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
        assert_eq!(
            order("1", "2147483647", "1").unwrap().number_of_items,
            i32::MAX
        );
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
        fn no_bytes_at_all_make_a_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = NewOrder::from_json(&body);
        }
    }
}
