//! The texts of the sample day: templates by class and language, and what fills their gaps.
//!
//! Gaps: `{f}` first name, `{p}` practice, `{d}` clinician, `{w}` day, `{t}` time, `{n}` number to call, `{c}` code,
//! `{m}` medicine. Names and places are invented; links use the reserved domain example.com.

use super::dice::Dice;
use jiff::civil::{Date, Weekday};

const FIRST: [&str; 60] = [
    "Ada", "Amir", "Ana", "Andre", "Anh", "Aisha", "Ben", "Beth", "Carlos", "Carmen", "Chen", "Chloe",
    "Dana", "Darius", "Diego", "Dolores", "Elena", "Eli", "Emeka", "Fatima", "Felix", "Gloria", "Grace",
    "Hana", "Hector", "Ida", "Imani", "Ivan", "Jamal", "Joan", "Jorge", "Julia", "Kai", "Kofi", "Lena",
    "Leo", "Linh", "Lucia", "Mabel", "Marco", "Maria", "Mei", "Miles", "Nadia", "Nia", "Noah", "Olga",
    "Omar", "Pablo", "Priya", "Quinn", "Rosa", "Ruth", "Sam", "Sofia", "Tariq", "Uma", "Vera", "Wes", "Zoe",
];
const ACCENTED: [&str; 8] = [
    "Bego\u{f1}a",
    "Ren\u{e9}e",
    "N\u{fc}ria",
    "Mu\u{f1}iz",
    "Zo\u{e9}",
    "J\u{f6}rg",
    "In\u{e8}s",
    "\u{d8}yvind",
];
/// Names that no GSM alphabet has.
const WIDE: [&str; 6] = ["Jos\u{e1}", "Luc\u{ed}a", "Ra\u{fa}l", "Nguy\u{1ec5}n", "Zo\u{eb}", "\u{141}ukasz"];
const CLINICIANS: [&str; 24] = [
    "Dr. Abara",
    "Dr. Bell",
    "Dr. Castro",
    "Dr. Duong",
    "Dr. Ekholm",
    "Dr. Farah",
    "Dr. Gupta",
    "Dr. Hale",
    "Dr. Ito",
    "Dr. Jensen",
    "Dr. Kaplan",
    "Dr. Lowe",
    "Dr. Mensah",
    "Dr. Nolan",
    "Dr. O'Hara",
    "Dr. Park",
    "Dr. Quist",
    "Dr. Rossi",
    "Dr. Sato",
    "Dr. Tran",
    "Nurse Vance",
    "PA Weiss",
    "Dr. Young",
    "Dr. Zidane",
];
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// Those that GSM 03.38 holds.
const DAYS_ES: [&str; 4] = ["lunes", "martes", "jueves", "viernes"];
const WEEKDAYS_ES: [Weekday; 4] = [Weekday::Monday, Weekday::Tuesday, Weekday::Thursday, Weekday::Friday];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const MONTHS_ES: [&str; 12] = [
    "enero",
    "febrero",
    "marzo",
    "abril",
    "mayo",
    "junio",
    "julio",
    "agosto",
    "septiembre",
    "octubre",
    "noviembre",
    "diciembre",
];
/// The year of all dates in the texts: a weekday and a date belong together.
pub const YEAR: i16 = 2026;
const MEDICINES: [&str; 8] = [
    "prescription",
    "refill",
    "eye ointment",
    "inhaler",
    "90-day supply",
    "cream",
    "glucose meter",
    "antibiotic",
];

const REMINDER: [&str; 5] = [
    "Hi {f}, this is {p}. Reminder: you see {d} on {w} at {t}. Reply C to confirm, R to reschedule. STOP to opt out.",
    "{p}: {f}, your visit with {d} is {w}, {t}. Please come 15 minutes early and bring your insurance card.",
    "Reminder from {p}: {f}, appointment {w} at {t} with {d}. Questions? Call {n}.",
    "{f}, we look forward to seeing you at {p} on {w} at {t}. Can't make it? Call {n} so that we can offer the time to someone else.",
    "Hello {f}! Your visit to {p} is {w} at {t}. Reply Y to confirm.",
];
const CONFIRMATION: [&str; 3] = [
    "{p}: {f}, you are booked with {d} for {w} at {t}. Reply Y to confirm or N to cancel.",
    "Thanks {f}! Your appointment at {p} is set: {w}, {t}, {d}. Details: https://visit.example.com/{c}",
    "{f}, please confirm your visit on {w} at {t} with {d}. Text Y or call {n}. - {p}",
];
const PRESCRIPTION: [&str; 3] = [
    "{p}: {f}, your {m} is ready for pickup until {w}. Open till 9 PM. Code {c}.",
    "{f}, it is time to refill your {m}. Reply REFILL or order at https://rx.example.com/{c} - {p}",
    "{p}: your {m}, {f}, was sent out and should arrive by {w}. Track: https://rx.example.com/t/{c}",
];
const FOLLOW_UP: [&str; 3] = [
    "Hi {f}, {d} would like to know how you feel after your visit. Call {n} if pain or fever gets worse. - {p}",
    "{f}, your results are in the portal: https://portal.example.com/{c}. Questions? {n}. - {p}",
    "{p}: {f}, please keep the dressing dry until {w}. Next check: {w} at {t} with {d}.",
];
const RECALL: [&str; 3] = [
    "{p}: {f}, it has been a year. You are due for a check-up with {d}. Book: https://visit.example.com/b/{c}",
    "Hi {f}, you are due for a visit at {p}. We have {w} at {t}. Reply 1 to take it or call {n}.",
    "{f}, time for your six-month check at {p}! Call {n} or book at https://visit.example.com/b/{c}",
];
const STAFF: [&str; 2] = [
    "{p} staff: {f}, you are on call {w} from {t}. Pager code {c}. Reply OK.",
    "{p} desk: {f}, room {c} moved to {t} for {d}. Please reply OK.",
];
const PUBLIC_HEALTH: [&str; 2] = [
    "{p}: {f}, free flu shots on {w} from {t}, no appointment needed. Info: {n}, ref {c}.",
    "Health notice from {p}, {f}: boil-water advice in your area until {w}, {t}. Info: {n}, ref {c}.",
];
const WAITLIST: [&str; 2] = [
    "{p}: {f}, a place with {d} opened {w} at {t}. First come, first served: reply Y within 15 min.",
    "{f}, earlier time available at {p}: {w} {t} with {d}. Reply Y to take it, N to keep yours.",
];
const PAYMENT: [&str; 2] = [
    "{p}: {f}, you have a new statement. Pay securely at https://pay.example.com/{c} or call {n}.",
    "{f}, a balance from your visit on {w} is open. https://pay.example.com/{c} - {p}",
];
const FORM: [&str; 2] = [
    "{f}, please fill in your forms before {w}, {t}: https://forms.example.com/{c} - {p}",
    "{p}: save time, {f}! Sign your intake form for {d} here: https://forms.example.com/{c}",
];
const SURVEY: [&str; 2] = [
    "How was your visit with {d}, {f}? Two questions: https://ask.example.com/{c} - {p}",
    "{p}: {f}, would you recommend us? Reply 0 to 10. Ref {c}",
];

/// Spanish that GSM 03.38 holds: no a, i, o, u with an acute accent.
const SPANISH_NARROW: [&str; 3] = [
    "Hola {f}, le esperamos en {p} el {w} a las {t} con {d}. \u{bf}Puede venir? Responda C para confirmar.",
    "{p}: {f}, ma\u{f1}ana tiene su visita con {d} a las {t}. Si no puede venir, llame al {n}.",
    "{f}, \u{a1}no olvide su cita! {w}, {t}, {p}. Traiga su tarjeta del seguro. {n}",
];
/// Spanish as it is written; needs UCS-2.
const SPANISH_WIDE: [&str; 3] = [
    "Hola {f}, su cita con {d} en {p} es el {w} a las {t}. Responda S\u{ed} para confirmar.",
    "{p}: {f}, por favor llegue 15 minutos antes el {w} a las {t}. Tel\u{e9}fono {n}. C\u{f3}digo {c}.",
    "{f}, su m\u{e9}dico pide un an\u{e1}lisis de sangre antes del {w}. Llame al {n}.",
];
/// Other texts that need UCS-2: typographic marks, pictures, other scripts.
const WIDE_TEXTS: [&str; 5] = [
    "Hi {f} \u{2013} it\u{2019}s {p}. See you {w} at {t}. Reply C to confirm \u{1f44d}",
    "\u{1f9b7} {p}: {f}, you\u{2019}re due! Book {w} {t}: https://visit.example.com/b/{c}",
    "{f} \u{60a8}\u{597d}\u{ff0c}{p} \u{63d0}\u{9192}\u{ff1a}{w} {t} {d}\u{3002}",
    "Xin ch\u{e0}o {f}, l\u{1ecb}ch h\u{1eb9}n t\u{1ea1}i {p}: {w}, {t}. G\u{1ecd}i {n}.",
    "\u{417}\u{434}\u{440}\u{430}\u{432}\u{441}\u{442}\u{432}\u{443}\u{439}\u{442}\u{435}, {f}! {p}: {w}, {t}, {d}. {n}",
];
/// Long instructions: three parts and more.
const LONG: [&str; 2] = [
    "{p}: {f}, how to prepare for your procedure with {d} on {w} at {t}. Five days before: stop iron and fiber \
supplements. The day before: no solid food; clear liquids only (water, broth, apple juice, black coffee). At 6 PM \
mix the first bottle with water to the line and drink it within 30 minutes, then two more glasses of water. Six \
hours before your visit repeat with the second bottle. Nothing by mouth for the last four hours. You need an adult \
to drive you home. Bring a list of your medicines and your insurance card. If you take blood thinners or insulin, \
call {n} today. Ref {c}.",
    "{p}: {f}, after your visit with {d}: rest today, drink plenty of fluids, and take your medicine with food. Some \
soreness is normal for two days. Use ice for 15 minutes at a time, not directly on the skin. Do not drive until \
tomorrow. Change the dressing on {w} and keep it dry until then. Call {n} at once for fever over 101 F, bleeding \
that does not stop after 20 minutes of pressure, or trouble breathing; for an emergency call 911. Your next check \
is {w} at {t}. Ref {c}.",
];

fn templates(class: &str) -> &'static [&'static str] {
    match class {
        "confirmation" => &CONFIRMATION,
        "prescription" => &PRESCRIPTION,
        "follow_up" => &FOLLOW_UP,
        "recall" => &RECALL,
        "staff" => &STAFF,
        "public_health" => &PUBLIC_HEALTH,
        "waitlist" => &WAITLIST,
        "payment" => &PAYMENT,
        "form" => &FORM,
        "survey" => &SURVEY,
        _ => &REMINDER,
    }
}

/// "Tue, Mar 3": the first such day of the week from a drawn date on, or in the last days of December the last one.
fn date_en(dice: &mut Dice) -> String {
    let (weekday, month, day) = (dice.below(7) as i8, dice.below(12) as i8 + 1, dice.between(1, 28) as i8);
    let from = Date::constant(YEAR, month, day);
    let ahead = (weekday - from.weekday().to_monday_zero_offset()).rem_euclid(7);
    let later = from.saturating_add(jiff::Span::new().days(ahead));
    let date = if later.year() == YEAR { later } else { later.saturating_sub(jiff::Span::new().days(7)) };
    let (weekday, month) = (date.weekday().to_monday_zero_offset(), date.month());
    format!("{}, {} {}", DAYS[weekday as usize], MONTHS[month as usize - 1], date.day())
}

/// "martes 3 de marzo": in the first month in which the drawn day is that day of the week; every year has one.
fn date_es(dice: &mut Dice) -> String {
    // A clinic has more visits early in the week.
    let (weekday, day) = (dice.below(7) as usize % 4, dice.between(1, 28) as i8);
    let fits = |month: &i8| Date::constant(YEAR, *month, day).weekday() == WEEKDAYS_ES[weekday];
    let month = (1..=12).find(fits).unwrap_or(1);
    format!("{} {day} de {}", DAYS_ES[weekday], MONTHS_ES[month as usize - 1])
}

/// A text of a class, with its gaps filled by draws. `call` is the practice's own number.
pub fn text(dice: &mut Dice, class: &str, practice: &str, call: &str) -> String {
    let about_visit = matches!(class, "reminder" | "confirmation");
    // Of 100 texts: who writes how.
    let style = dice.below(100);
    let (template, spanish) = match style {
        0..=9 if about_visit => (*dice.pick(&SPANISH_NARROW), true),
        10..=13 if about_visit => (*dice.pick(&SPANISH_WIDE), true),
        14..=15 if class != "staff" => (*dice.pick(&WIDE_TEXTS), false),
        0..=7 if class == "follow_up" => (*dice.pick(&LONG), false),
        _ => (*dice.pick(templates(class)), false),
    };
    let first = match dice.below(100) {
        0..=4 => *dice.pick(&ACCENTED),
        5 => *dice.pick(&WIDE),
        _ => *dice.pick(&FIRST),
    };
    let minute = 5 * dice.below(12);
    let (hour, half) = match dice.between(8, 17) {
        hour @ 8..=11 => (hour, "AM"),
        12 => (12, "PM"),
        hour => (hour - 12, "PM"),
    };
    let time = format!("{hour}:{minute:02} {half}");
    let day = if spanish { date_es(dice) } else { date_en(dice) };
    let code = format!("{:05}", dice.below(100_000));
    let (clinician, medicine) = (*dice.pick(&CLINICIANS), *dice.pick(&MEDICINES));
    template
        .replace("{f}", first)
        .replace("{p}", practice)
        .replace("{d}", clinician)
        .replace("{w}", &day)
        .replace("{t}", &time)
        .replace("{n}", call)
        .replace("{c}", &code)
        .replace("{m}", medicine)
}
