// tus-js-client as a foreign client: node tus_client.mjs PACKAGES ENDPOINT TOKEN FILE [CHUNK]
import { createReadStream, statSync } from "node:fs";
import { createRequire } from "node:module";

const [packages, endpoint, token, file, chunk] = process.argv.slice(2);
const tus = createRequire(`${packages}/`)("tus-js-client");
const upload = new tus.Upload(createReadStream(file), {
  endpoint,
  headers: { Authorization: `Bearer ${token}` },
  uploadSize: statSync(file).size,
  chunkSize: Number(chunk || Infinity),
  retryDelays: [100, 300, 1000],
  metadata: { filename: "foreign.raw" },
  onError(error) {
    console.error(String(error));
    process.exit(1);
  },
  onSuccess() {
    console.log(upload.url);
  },
});
upload.start();
