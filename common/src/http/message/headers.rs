//! Header fields.

/// The header fields of a request in their order, in one piece of memory. Names are written as the client wrote
/// them; values are ISO 8859-1, with one character for each octet.
#[derive(Debug, Default)]
pub struct Headers {
    text: String,
    /// For each field, where its name begins, where its value begins, and where its value ends.
    fields: Vec<(usize, usize, usize)>,
}

impl Headers {
    pub(super) fn with_capacity(bytes: usize, fields: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
            fields: Vec::with_capacity(fields),
        }
    }

    pub(crate) fn push(&mut self, name: &str, value: &[u8]) {
        let begin = self.text.len();
        self.text.push_str(name);
        let behind_name = self.text.len();
        match std::str::from_utf8(value) {
            Ok(ascii) if ascii.is_ascii() => self.text.push_str(ascii),
            _ => self.text.extend(value.iter().copied().map(char::from)),
        }
        self.fields.push((begin, behind_name, self.text.len()));
    }

    pub(super) fn bytes(&self) -> usize {
        self.text.capacity() + self.fields.capacity() * size_of::<(usize, usize, usize)>()
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let fields = self.fields.iter();
        fields.map(|&(name, value, end)| (&self.text[name..value], &self.text[value..end]))
    }

    /// The values of all fields of that name, in any case.
    pub fn values<'h>(&'h self, name: &str) -> impl Iterator<Item = &'h str> {
        let is_named = move |field: &(&str, _)| field.0.eq_ignore_ascii_case(name);
        self.iter().filter(is_named).map(|(_, value)| value)
    }
}
