// Rate and time left of an upload, over the last seconds.

const WINDOW = 8000;

export class Meter {
  #marks = [];

  constructor(clock = () => performance.now()) {
    this.clock = clock;
  }

  /** What was sent before a pause says nothing of the speed after it. */
  restart() {
    this.#marks = [];
  }

  /** {rate, left}: bytes a second and seconds, null where they are not known yet. */
  mark(sent, total) {
    const now = this.clock();
    const last = this.#marks.at(-1);
    if (last && sent < last.sent) this.#marks = [];
    this.#marks.push({ now, sent });
    while (this.#marks.length > 2 && now - this.#marks[0].now > WINDOW) this.#marks.shift();
    const first = this.#marks[0];
    const span = (now - first.now) / 1000;
    if (span < 0.5 || sent <= first.sent) return { rate: null, left: null };
    const rate = (sent - first.sent) / span;
    return { rate, left: (total - sent) / rate };
  }
}
