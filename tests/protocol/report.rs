//! Shows where two streams differ, side by side.

use super::run::Stream;
use super::script::Script;

/// Characters per column.
const WIDTH: usize = 76;

/// Both streams, step by step; steps that are alike are shortened.
pub fn side_by_side(script: &Script, direct: &Stream, proxied: &Stream) -> String {
    let mut out = format!("{} ({})\n", script.name, script.place);
    let empty = Vec::new();
    let mut whole = Vec::new();
    // The last one is what is left behind, also where a script ends early.
    let (direct, left_direct) = split(direct);
    let (proxied, left_proxied) = split(proxied);
    let texts = script.steps.iter().map(|step| step.text.as_str());
    for (index, step) in texts.chain(["(another client looks)"]).enumerate() {
        let last = index == script.steps.len();
        let reached = last || index < direct.len() || index < proxied.len();
        if !reached {
            continue;
        }
        let (left, right) = match last {
            true => (left_direct, left_proxied),
            false => (
                direct.get(index).unwrap_or(&empty),
                proxied.get(index).unwrap_or(&empty),
            ),
        };
        out += &format!("  > {}\n", cut(&step.replace('\n', " "), 2 * WIDTH));
        if left == right {
            match &left[..] {
                [] => {}
                [.., last] => out += &format!("    … {} alike, {}\n", left.len(), cut(last, WIDTH)),
            }
            continue;
        }
        for at in 0..left.len().max(right.len()) {
            let (l, r) = (text(left, at), text(right, at));
            let mark = if l == r { ' ' } else { '!' };
            out += &format!("  {mark} {:WIDTH$} | {}\n", cut(l, WIDTH), cut(r, WIDTH));
            if l != r && (l.chars().count() > WIDTH || r.chars().count() > WIDTH) {
                whole.push((l.to_owned(), r.to_owned()));
            }
        }
    }
    if let Some((left, right)) = whole.first() {
        out += &format!("    direct:  {left}\n    proxied: {right}\n");
    }
    out
}

fn split(stream: &Stream) -> (&[Vec<String>], &Vec<String>) {
    let (last, steps) = stream.split_last().expect("what is left behind");
    (steps, last)
}

fn text(lines: &[String], at: usize) -> &str {
    lines.get(at).map_or("(nothing)", String::as_str)
}

fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        Some((end, _)) => format!("{}…", &text[..text[..end].floor_char_boundary(end - 1)]),
        None => text.to_owned(),
    }
}

/// One stream in full, as far as it can be read.
pub fn alone(script: &Script, stream: &Stream) -> String {
    let mut out = format!("== {}\n", script.name);
    let (steps, left) = split(stream);
    let texts = script.steps.iter().map(|step| step.text.as_str());
    let steps = texts.zip(steps).chain([("(another client looks)", left)]);
    for (step, messages) in steps {
        out += &format!("> {}\n", cut(step, 2 * WIDTH));
        for message in messages {
            out += &format!("    {}\n", cut(message, 2 * WIDTH));
        }
    }
    out
}
