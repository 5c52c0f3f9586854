// Resumable uploads: a client of tus 1.0.0 (https://tus.io/protocols/resumable-upload), as far as it is needed here.

const PIECE = 64 << 20;
const LEAST = 1 << 20;
const SILENCE = 60_000;
const ANSWER = 600_000;
const LONGEST_PAUSE = 30_000;

/** A failure that trying again does not change. */
export class UploadRefused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Sends one file; goes on by itself after whatever may pass. */
export class Upload {
  /**
   * `endpoint`: the URL that creates uploads to the volume; `token()`: a token, requested again after each 401;
   * `known`: the URL of an upload to resume, or null; `remember(url)`: store it, or forget it if null;
   * `progress(sent, total)`; `waiting(message)`: why it makes no progress, empty when it continues.
   */
  constructor(file, { endpoint, token, known, remember, progress, waiting }) {
    Object.assign(this, { file, endpoint, token, url: known || null, remember, progress, waiting });
    this.piece = PIECE;
    this.stopped = false;
    this.request = null;
    this.wake = null;
  }

  /** Resolves when all is sent and taken.  Throws `UploadRefused`. */
  async run() {
    let failures = 0;
    let offset = null;
    let bearer = null;
    let renewed = false;
    while (!this.stopped) {
      try {
        bearer ??= await this.token();
        if (this.url === null) [this.url, offset] = [await this.#begin(bearer), 0];
        if (offset === null) offset = await this.#offset(bearer);
        this.waiting("");
        this.progress(offset, this.file.size);
        while (offset < this.file.size && !this.stopped) {
          offset = await this.#send(bearer, offset);
          failures = 0;
          renewed = false;
        }
        if (!this.stopped) this.remember(null);
        return;
      } catch (error) {
        if (this.stopped) return;
        const status = error.status || 0;
        const asked = offset;
        offset = null;
        if (status === 401 && !renewed) {
          [bearer, renewed] = [null, true];
          continue;
        }
        if ((status === 404 || status === 410) && this.url !== null) {
          this.#forget();
          continue;
        }
        if (status === 413 && asked !== null && this.piece > LEAST) {
          // Something on the way takes less at a time.
          this.piece = Math.max(LEAST, this.piece / 4);
          continue;
        }
        // 409 and 423: the server has another offset, or is still busy with the connection that broke.
        if (status !== 0 && status < 500 && ![408, 409, 423, 425, 429, 460].includes(status)) {
          this.#forget();
          throw error;
        }
        failures += 1;
        await this.#pause(failures, error.message);
      }
    }
  }

  /** Stop; with `remove` the server forgets what it has. */
  async stop({ remove = false } = {}) {
    this.stopped = true;
    this.request?.abort();
    this.wake?.();
    if (remove && this.url !== null) {
      const url = this.url;
      this.#forget();
      await this.#ask("DELETE", url, await this.token()).catch(() => {});
    }
  }

  #forget() {
    this.url = null;
    this.remember(null);
  }

  async #begin(bearer) {
    const name = btoa(String.fromCharCode(...new TextEncoder().encode(this.file.name.slice(0, 200))));
    const answer = await this.#ask("POST", this.endpoint, bearer, {
      "Upload-Length": String(this.file.size),
      "Upload-Metadata": `filename ${name}`,
    });
    const url = new URL(answer.getResponseHeader("Location") || "", new URL(this.endpoint, location.href));
    // The token goes with every request, so to nobody else.
    if (answer.status !== 201 || url.origin !== location.origin) throw new UploadRefused(400, "The server did not create an upload.");
    this.remember(url.pathname);
    return url.pathname;
  }

  async #offset(bearer) {
    const answer = await this.#ask("HEAD", this.url, bearer);
    if (Number(answer.getResponseHeader("Upload-Length") ?? this.file.size) !== this.file.size) {
      throw Object.assign(new Error("The upload belongs to another file."), { status: 404 });
    }
    return this.#read(answer);
  }

  async #send(bearer, offset) {
    const body = this.file.slice(offset, offset + this.piece);
    const answer = await this.#ask(
      "PATCH",
      this.url,
      bearer,
      { "Upload-Offset": String(offset), "Content-Type": "application/offset+octet-stream" },
      body,
      (sent) => this.progress(offset + Math.min(sent, body.size), this.file.size),
    );
    const now = this.#read(answer);
    this.progress(now, this.file.size);
    if (now <= offset) throw Object.assign(new Error("The server stored none of the bytes sent."), { status: 0 });
    return now;
  }

  #read(answer) {
    const offset = Number(answer.getResponseHeader("Upload-Offset") ?? NaN);
    if (!Number.isSafeInteger(offset) || offset < 0 || offset > this.file.size) {
      throw new UploadRefused(400, "The server did not report the upload's offset.");
    }
    return offset;
  }

  /** XMLHttpRequest, because fetch does not tell how much of a body was sent. */
  #ask(method, url, bearer, headers = {}, body = null, sent = null) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      this.request = method === "DELETE" ? this.request : request;
      let timer = 0;
      const fail = (status, message) => {
        clearTimeout(timer);
        reject(new UploadRefused(status, message));
      };
      const watch = (span) => {
        clearTimeout(timer);
        timer = setTimeout(() => request.abort(), span);
      };
      request.open(method, url);
      request.setRequestHeader("Tus-Resumable", "1.0.0");
      request.setRequestHeader("Authorization", `Bearer ${bearer}`);
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
      if (sent !== null) {
        request.upload.onprogress = (event) => {
          watch(SILENCE);
          sent(event.loaded);
        };
        // The last answer comes when the image was looked at and written.
        request.upload.onload = () => watch(ANSWER);
      }
      request.onload = () => {
        clearTimeout(timer);
        if (request.status >= 200 && request.status < 300) resolve(request);
        else fail(request.status, refusal(request));
      };
      request.onerror = () => fail(0, "The connection was lost.");
      request.onabort = () => fail(0, "The server did not respond in time.");
      watch(SILENCE);
      request.send(body);
    });
  }

  async #pause(failures, message) {
    let left = Math.min(LONGEST_PAUSE, 500 * 2 ** Math.min(failures, 8));
    while (left > 0 && !this.stopped) {
      this.waiting(`${message} Retrying in ${Math.ceil(left / 1000)} s.`);
      const step = Math.min(1000, left);
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, step);
      });
      left -= step;
    }
  }
}

/** A refusal's text, in JSON or plain. */
function refusal(request) {
  const text = request.responseText.slice(0, 4000).trim();
  try {
    const message = JSON.parse(text).message;
    if (typeof message === "string") return message;
  } catch {
    // Plain text then.
  }
  return text && !text.startsWith("<") ? text : `The server answered ${request.status}.`;
}
