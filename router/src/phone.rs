pub fn slow(text: &str) -> Option<String> {
    let n = rlibphonenumber::PHONE_NUMBER_UTIL.parse(text, None).ok()?;
    if !n.is_valid() { return None; }
    Some(n.format_as(rlibphonenumber::PhoneNumberFormat::E164).into_owned())
}
#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn speed() {
        for t in ["+12125550123", "+14155550100", "+442079460958", "+18095551234"] {
            let _ = slow(t);
            let s = std::time::Instant::now();
            let mut ok = 0;
            for _ in 0..20000 { ok += slow(t).is_some() as u32; }
            println!("{t} {ok} {:?}", s.elapsed() / 20000);
        }
        let body = "Hello, this is a reminder of your appointment with Dr. Smith on Tuesday at 9:30. ".repeat(4);
        let s = std::time::Instant::now();
        let mut k = 0;
        for _ in 0..20000 { k += carillon_proto::sms::analyze(&body).segments; }
        println!("{} chars {k} {:?}", body.len(), s.elapsed() / 20000);
        // plain area codes
        let mut plain = vec![];
        let mut x: u64 = 88172645463325252;
        let s = std::time::Instant::now();
        for npa in 200..1000 {
            let mut good = 0; let mut n = 0;
            for nxx in 200..1000 { 
                x ^= x << 13; x ^= x >> 7; x ^= x << 17;
                let t = format!("+1{npa}{nxx}{:04}", x % 10000);
                n += 1;
                if slow(&t).is_some() { good += 1; } else { break; }
            }
            if good == n { plain.push(npa); }
        }
        println!("{} {:?} {:?}", plain.len(), plain, s.elapsed());
    }
}
