//! One text in a form without accidents of typing, in which every sign that means something is kept.
//!
//! Superscripts become `^2` and subscripts `_2` before NFKC would make plain digits of them; a fraction
//! behind a digit gets a space; quotes, dashes, primes and signs of comparison get one form each. Case
//! is kept: the tokens decide where it means something.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Letters without their accents: `résumé` is `resume`.
pub(crate) fn without_accents(text: &str) -> String {
    text.nfd().filter(|c| !is_combining_mark(*c)).collect()
}

/// The normal form: single spaces, lines kept.
pub fn normalise(text: &str) -> String {
    if text.is_ascii() {
        return single_spaces(text.chars());
    }
    let kept: String = keep_position(text).nfkc().collect();
    let mut plain = String::with_capacity(kept.len());
    for character in kept.chars() {
        match one_form(character) {
            Some(form) => plain.push_str(form),
            None => plain.push(character),
        }
    }
    single_spaces(plain.chars())
}

/// What NFKC would lose: that a digit stands above or below the line, or in a fraction.
pub(crate) fn keep_position(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut position = None;
    for character in text.chars() {
        let found = raised(character).map(|plain| ('^', plain));
        let found = found.or_else(|| lowered(character).map(|plain| ('_', plain)));
        match found {
            Some((sign, plain)) => {
                if position != Some(sign) {
                    kept.push(sign);
                }
                kept.push(plain);
            }
            None if is_fraction(character) => {
                if kept.ends_with(|last: char| last.is_ascii_digit()) {
                    kept.push(' ');
                }
                kept.push(character);
            }
            // The ordinal sign is often meant as that of degrees.
            None if character == 'º' => kept.push('°'),
            None => kept.push(character),
        }
        position = found.map(|(sign, _)| sign);
    }
    kept
}

fn raised(character: char) -> Option<char> {
    Some(match character {
        '⁰' => '0',
        '¹' => '1',
        '²' => '2',
        '³' => '3',
        '⁴'..='⁹' => char::from(b'4' + (character as u32 - '⁴' as u32) as u8),
        '⁺' => '+',
        '⁻' => '-',
        'ⁿ' => 'n',
        'ⁱ' => 'i',
        _ => return None,
    })
}

fn lowered(character: char) -> Option<char> {
    match character {
        '₀'..='₉' => Some(char::from(b'0' + (character as u32 - '₀' as u32) as u8)),
        _ => None,
    }
}

fn is_fraction(character: char) -> bool {
    matches!(character, '¼'..='¾' | '⅐'..='⅟' | '↉')
}

/// What a character becomes, if it has a plainer form of the same meaning.
fn one_form(character: char) -> Option<&'static str> {
    Some(match character {
        '\u{2018}' | '\u{2019}' | '\u{201B}' | '\u{2BC}' | '\u{2032}' => "'",
        '\u{201C}'..='\u{201F}' | '«' | '»' => "\"",
        '\u{2010}'..='\u{2013}' | '\u{2212}' => "-",
        '\u{2014}' | '\u{2015}' => " ",
        '\u{2044}' | '÷' => "/",
        '×' | '·' | '⋅' | '∙' => "*",
        '≠' => "!=",
        '≤' => "<=",
        '≥' => ">=",
        '\u{2028}' | '\u{2029}' => "\n",
        '\u{AD}' | '\u{200B}'..='\u{200F}' | '\u{2060}' | '\u{FEFF}' | '\u{FE0F}' => "",
        _ => return None,
    })
}

fn single_spaces(characters: impl Iterator<Item = char>) -> String {
    let mut text = String::new();
    for character in characters {
        if character == '\n' {
            if text.ends_with(' ') {
                text.pop();
            }
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
        } else if character.is_whitespace() || character.is_control() {
            if !text.is_empty() && !text.ends_with([' ', '\n']) {
                text.push(' ');
            }
        } else {
            text.push(character);
        }
    }
    let length = text.trim_end_matches([' ', '\n']).len();
    text.truncate(length);
    text
}

/// Punctuation: what no token is made of, unless a rule for it says so.
pub(crate) fn is_punctuation(character: char) -> bool {
    character.is_ascii_punctuation()
        || matches!(character,
            '¡' | '§' | '¶' | '¿' | '\u{37E}' | '\u{387}'
            | '\u{55A}'..='\u{55F}' | '\u{589}' | '\u{58A}'
            | '\u{5BE}' | '\u{5C0}' | '\u{5C3}' | '\u{5F3}' | '\u{5F4}'
            | '\u{609}'..='\u{60D}' | '\u{61B}'..='\u{61F}' | '\u{66A}'..='\u{66D}' | '\u{6D4}'
            | '\u{964}' | '\u{965}' | '\u{E4F}' | '\u{E5A}' | '\u{E5B}'
            | '\u{1361}'..='\u{1368}' | '\u{17D4}'..='\u{17DA}'
            | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205E}' | '\u{3000}'..='\u{303F}'
            | '\u{30FB}')
}

/// Written without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han.
pub(crate) fn is_unspaced(character: char) -> bool {
    matches!(character,
        '\u{E00}'..='\u{EFF}' | '\u{1000}'..='\u{109F}' | '\u{1780}'..='\u{17FF}'
        | '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}'
        | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
}

/// Whether a character ends a sentence wherever it stands, without a space behind it.
pub(crate) fn ends_sentence(character: char) -> bool {
    matches!(character, '。' | '\u{61F}' | '\u{61B}' | '\u{6D4}' | '\u{964}' | '\u{965}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn position_is_kept() {
        assert_eq!(normalise("2² + x₁₂ is 1½"), "2^2 + x_12 is 1 1/2");
        assert_eq!(normalise("10⁻³ m"), "10^-3 m");
        assert_ne!(normalise("2²"), normalise("22"));
    }

    #[test]
    fn forms_of_one_sign_are_one() {
        assert_eq!(normalise("“it’s” − 5 × 3 ≠ ４"), "\"it's\" - 5 * 3 != 4");
        assert_eq!(normalise("  a \t b \r\n\n c "), "a b\nc");
    }

    proptest! {
        #[test]
        fn it_is_a_normal_form(text: String) {
            let once = normalise(&text);
            prop_assert_eq!(normalise(&once), once);
        }
    }
}
