// One resumable upload: tus-js-client (https://tus.io/protocols/resumable-upload), with tokens that expire, pauses that are
// shown, a limit for silence, and the server's own words for a refusal.

import "./vendor/tus.min.js";

const { tus } = globalThis;

const PIECE = 64 << 20;
const LEAST = 1 << 20;
const SILENCE = 60_000;
const ANSWER = 600_000;
const LONGEST_PAUSE = 30_000;
/** Three days; progress begins the pauses anew. */
const PAUSES = [1000, 2000, 4000, 8000, 16_000, ...new Array(8640).fill(LONGEST_PAUSE)];
/** The server is busy, or still busy with the connection that broke; or a proxy in between is. */
const PASSING = [408, 409, 423, 425, 429, 460];
const GONE = [404, 410];

/** A failure that trying again does not change; the status is 0 where there was no answer. */
export class UploadRefused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Sends one file; continues by itself after whatever may pass. */
export class Upload {
  stopped = false;
  #tus;
  #token;
  #waiting;
  #bearer = null;
  #renewed = false;
  #countdown = 0;
  #resolve = () => {};
  #reject = () => {};

  /**
   * `endpoint`: the path that creates uploads to the volume; `fingerprint`: what the file is known by after the page was
   * closed; `token()`: a token, requested again after a 401; `progress(sent, total)`; `waiting(message)`: why it makes no
   * progress, empty when it continues.
   */
  constructor(file, { endpoint, fingerprint, token, progress, waiting }) {
    this.#token = token;
    this.#waiting = waiting;
    this.#tus = new tus.Upload(file, {
      endpoint: new URL(endpoint, location.href).href,
      fingerprint: async () => fingerprint,
      metadata: { filename: file.name.slice(0, 200) },
      chunkSize: PIECE,
      retryDelays: PAUSES,
      removeFingerprintOnSuccess: true,
      urlStorage: STORAGE,
      httpStack: STACK,
      onBeforeRequest: (request) => this.#authorize(request),
      onAfterResponse: check,
      onShouldRetry: (error, attempt) => this.#retries(error, attempt),
      onProgress: (sent, total) => {
        waiting("");
        progress(sent, total);
      },
      onChunkComplete: () => (this.#renewed = false),
      onSuccess: () => this.#resolve(),
      onError: async (error) => {
        await this.#forget();
        this.#reject(refusal(error));
      },
    });
  }

  /** Resolves when all is sent and taken, or after `stop`.  Throws `UploadRefused`. */
  run() {
    return new Promise((resolve, reject) => {
      [this.#resolve, this.#reject] = [resolve, reject];
      this.#tus.findPreviousUploads().then(([previous]) => {
        if (this.stopped) return resolve();
        if (previous) this.#tus.resumeFromPreviousUpload(previous);
        this.#tus.start();
      }, reject);
    });
  }

  /** Stop, and let the server forget what it has. */
  async stop() {
    this.stopped = true;
    this.#continue();
    this.#resolve();
    await this.#forget();
    await this.#tus.abort(true).catch(() => {});
  }

  async #forget() {
    for (const { urlStorageKey } of await this.#tus.findPreviousUploads()) await STORAGE.removeUpload(urlStorageKey);
  }

  async #authorize(request) {
    this.#continue();
    // The token goes with every request, so to nobody else.
    if (new URL(request.getURL()).origin !== location.origin) throw new UploadRefused(400, "The server did not create an upload.");
    this.#bearer ??= await this.#token();
    if (this.stopped && request.getMethod() !== "DELETE") throw new UploadRefused(0, "The upload was stopped.");
    request.setHeader("Authorization", `Bearer ${this.#bearer}`);
  }

  #retries(error, attempt) {
    const { status, message } = refusal(error);
    const method = error.originalRequest.getMethod();
    if (status === 401) {
      if (this.#renewed) return false;
      [this.#bearer, this.#renewed] = [null, true];
      return true;
    }
    if (this.stopped) return false;
    if (status === 413 && method === "PATCH" && this.#tus.options.chunkSize > LEAST) {
      // Something on the way takes less at a time.
      this.#tus.options.chunkSize = Math.max(LEAST, this.#tus.options.chunkSize / 4);
      return true;
    }
    const passing = status === 0 || status >= 500 || PASSING.includes(status) || (GONE.includes(status) && method !== "POST");
    if (passing) this.#pause(PAUSES[attempt], message);
    return passing;
  }

  #pause(span, message) {
    const until = performance.now() + span;
    const show = () => this.#waiting(`${message} Retrying in ${Math.max(1, Math.ceil((until - performance.now()) / 1000))} s.`);
    this.#continue();
    this.#countdown = setInterval(show, 1000);
    show();
  }

  #continue() {
    clearInterval(this.#countdown);
  }
}

const browser = tus.defaultOptions;

const STORAGE = {
  findAllUploads: () => browser.urlStorage.findAllUploads(),
  findUploadsByFingerprint: (fingerprint) => browser.urlStorage.findUploadsByFingerprint(fingerprint),
  removeUpload: (key) => browser.urlStorage.removeUpload(key),
  async addUpload(fingerprint, upload) {
    try {
      return await browser.urlStorage.addUpload(fingerprint, upload);
    } catch {
      // There is no room; then it continues only while the page is open.
      return null;
    }
  },
};

const STACK = {
  getName: () => browser.httpStack.getName(),
  createRequest(method, url) {
    const request = browser.httpStack.createRequest(method, url);
    limitSilence(request.getUnderlyingObject());
    return request;
  },
};

/** Fail a request (XMLHttpRequest) whose server is silent, which tus-js-client would wait for without end. */
function limitSilence(request) {
  let timer = 0;
  const wait = (span) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      request.abort();
      request.dispatchEvent(Object.assign(new ProgressEvent("error"), { silent: true }));
    }, span);
  };
  request.addEventListener("loadstart", () => wait(SILENCE));
  request.upload.addEventListener("progress", () => wait(SILENCE));
  // The last answer comes when the image was inspected and written.
  request.upload.addEventListener("load", () => wait(ANSWER));
  request.addEventListener("loadend", () => clearTimeout(timer));
}

/**
 * Throw what the server refused.  tus-js-client would begin anew after any failure to ask for the offset, also where the
 * token has expired or the server is restarting; only an upload that is gone is begun anew.
 */
function check(request, response) {
  const status = response.getStatus();
  if ((status >= 200 && status < 300) || (request.getMethod() === "HEAD" && GONE.includes(status))) return;
  throw new UploadRefused(status, words(status, response.getBody()));
}

/** What is behind an error of tus-js-client. */
function refusal({ causingError, originalResponse }) {
  if (causingError instanceof Error) return causingError;
  if (causingError) return new UploadRefused(0, causingError.silent ? "The server did not respond in time." : "The connection was lost.");
  return new UploadRefused(originalResponse ? 400 : 0, "The server's answer is not one of the upload protocol.");
}

/** A refusal's text, in JSON or plain. */
function words(status, body) {
  const text = body.slice(0, 4000).trim();
  try {
    const { message } = JSON.parse(text);
    if (typeof message === "string") return message;
  } catch {
    // Plain text then.
  }
  return text && !text.startsWith("<") ? text : `The server answered ${status}.`;
}
