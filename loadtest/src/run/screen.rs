//! `--tui`: the run on a terminal while it goes on: rates, percentiles, lanes, what happened.
//!
//! Owns: the terminal from [`Screen::open`] until it is dropped, however the run ends. The terminal stays in its ordinary
//! input mode, so Ctrl-C is a signal as everywhere else.

use std::io::{self, IsTerminal as _, Stdout, stdout};

use ratatui::Terminal;
use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, Paragraph, Row, Sparkline, Table};

use super::engine::interval::Interval;
use super::live::Live;
use super::report::number_text as number;
use super::scenario::Scenario;

/// A terminal that shows the run.
pub struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    pub fn open() -> anyhow::Result<Self> {
        anyhow::ensure!(stdout().is_terminal(), "--tui needs a terminal");
        execute!(stdout(), EnterAlternateScreen, Hide)?;
        Ok(Self(Terminal::new(CrosstermBackend::new(stdout()))?))
    }

    pub fn draw(&mut self, scenario: &Scenario, live: &Live, second: &Interval) -> io::Result<()> {
        draw(&mut self.0, scenario, live, second)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nothing left to do about a terminal that is gone.
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

fn draw<B: Backend>(
    terminal: &mut Terminal<B>,
    scenario: &Scenario,
    live: &Live,
    second: &Interval,
) -> io::Result<()> {
    terminal.draw(|frame| {
        let lanes = live.lanes.len().clamp(1, 6) as u16;
        let [head, rates, bars, table, lanes, marks] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(3),
            Constraint::Length(6),
            Constraint::Length(7),
            Constraint::Length(lanes + 2),
            Constraint::Min(3),
        ])
        .areas(frame.area());
        frame.render_widget(progress(scenario, second), head);
        frame.render_widget(counts(scenario, live, second), rates);
        frame.render_widget(history(live, bars), bars);
        frame.render_widget(times(live, second), table);
        frame.render_widget(lane_table(live), lanes);
        frame.render_widget(happened(live, marks), marks);
    })?;
    Ok(())
}

fn progress<'a>(scenario: &'a Scenario, second: &Interval) -> Gauge<'a> {
    let (at, length) = (second.second as f64 + 1.0, scenario.length_s());
    Gauge::default()
        .block(Block::bordered().title(scenario.name.as_str()))
        .gauge_style(Style::new().fg(Color::Blue))
        .ratio((at / length).clamp(0.0, 1.0))
        .label(format!("{at:.0} of {length:.0} s"))
}

fn counts<'a>(scenario: &Scenario, live: &Live, second: &Interval) -> Paragraph<'a> {
    let at = second.second as f64;
    let bad = second.errors() + second.missed;
    let line = format!(
        "asked {:.0}/s   acknowledged {}/s   carrier {}/s   backlog {}   failed {}   missed {}   late {}",
        live.asked(at, at + 1.0),
        second.acknowledged,
        live.seen().messages,
        live.seen().backlog,
        live.sum.errors(),
        live.sum.missed,
        live.sum.late
    );
    let style = if bad > 0 { Style::new().fg(Color::Red) } else { Style::new() };
    let pacing = format!("messages, {:?} loop", scenario.pacing).to_lowercase();
    Paragraph::new(line).style(style).block(Block::bordered().title(pacing))
}

fn history<'a>(live: &Live, area: Rect) -> Sparkline<'a> {
    let rows = live.timeline.rows();
    let shown = usize::from(area.width.saturating_sub(2)).max(1);
    let data: Vec<u64> =
        rows[rows.len().saturating_sub(shown)..].iter().map(|row| row.acknowledged).collect();
    Sparkline::default()
        .block(Block::bordered().title("acknowledged"))
        .style(Style::new().fg(Color::Green))
        .data(data)
}

fn times<'a>(live: &Live, second: &Interval) -> Table<'a> {
    let row = |name: &str, latency: &crate::bench::measure::Latency| {
        let summary = latency.summary();
        let values = [summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.p999_ms, summary.max_ms];
        Row::new(std::iter::once(name.to_owned()).chain(values.map(number)))
    };
    let rows = [
        row("response, this second", &second.response),
        row("response, so far", &live.sum.response),
        row("service, so far", &live.sum.service),
        row("generator's lag", &live.sum.lag),
    ];
    let widths = [Constraint::Length(24)].into_iter().chain([Constraint::Length(10); 5]);
    Table::new(rows, widths)
        .header(Row::new(["ms", "p50", "p90", "p99", "p99.9", "max"]).bold())
        .block(Block::bordered().title("times"))
}

fn lane_table<'a>(live: &Live) -> Table<'a> {
    let rows = live.lanes.iter().map(|lane| {
        let limit = lane.limit.map_or("none".to_owned(), |limit| limit.to_string());
        let now = live.seen().lanes.get(&lane.name).copied().unwrap_or(0);
        let style = if lane.over_limit > 0 { Style::new().fg(Color::Red) } else { Style::new() };
        Row::new([
            lane.name.clone(),
            format!("{now} now"),
            format!("limit {limit} in {} ms", lane.window_ms),
            format!("fullest window {}", lane.window_max),
            format!("over {}", lane.over_limit),
        ])
        .style(style)
    });
    Table::new(rows.collect::<Vec<_>>(), [Constraint::Ratio(1, 5); 5])
        .block(Block::bordered().title("lanes: segments/s"))
}

fn happened<'a>(live: &Live, area: Rect) -> Paragraph<'a> {
    let room = usize::from(area.height.saturating_sub(2));
    let marks = live.marks.iter().rev().take(room).rev();
    let lines: Vec<Line<'a>> =
        marks.map(|mark| Line::from(format!("{:>7.1} s  {}: {}", mark.at_s, mark.kind, mark.text))).collect();
    Paragraph::new(lines).block(Block::bordered().title("faults and leaders"))
}

#[cfg(test)]
mod tests {
    use super::super::faults::Mark;
    use super::*;
    use ratatui::backend::TestBackend;
    use std::time::Duration;

    #[test]
    fn the_screen_shows_rates_times_and_what_happened() {
        let text = "name = \"x\"\n[[phase]]\nduration_s = 10\nrate_per_s = 100\n";
        let scenario = Scenario::parse("x", text).unwrap();
        let mut live = Live::new(&scenario, 1, None);
        let mut second = Interval { acknowledged: 97, ..Interval::default() };
        second.response.record(Duration::from_millis(12), 97);
        live.interval(&second);
        live.mark(Mark { at_s: 3.0, kind: "fault".to_owned(), text: "node 2 killed".to_owned() });
        for (width, height) in [(110, 30), (20, 5)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            draw(&mut terminal, &scenario, &live, &second).unwrap();
            let shown: String =
                terminal.backend().buffer().content.iter().map(|cell| cell.symbol()).collect();
            if width == 110 {
                for wanted in ["1 of 10 s", "acknowledged 97/s", "12.0", "node 2 killed", "open loop"] {
                    assert!(shown.contains(wanted), "{wanted}: {shown}");
                }
            }
        }
    }
}
