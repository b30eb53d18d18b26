import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { writeFileAtomic } from "../../../../agent/lib/atomic-file.ts";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { createLogger } from "../../../../agent/lib/log.ts";
import { certificateFromFiles } from "../../../../agent/server/auth/certificate-files.ts";
import { loadClientCA } from "../../../../agent/server/auth/client-ca.ts";
import { until } from "../../kube/support.ts";
import { cn, issue, issueAuthority } from "./certificates.ts";

const a = issue({ subject: cn("a") });
const b = issue({ subject: cn("b") });

let dir: string;
let stack: AsyncDisposableStack;
let lines: string[];

beforeEach(async () => {
  stack = new AsyncDisposableStack();
  dir = await mkdtemp(join(tmpdir(), "nodelet-reload-"));
  stack.defer(async () => rm(dir, { recursive: true }));
  lines = [];
});
afterEach(async () => {
  await stack.disposeAsync();
  if (/PRIVATE KEY|MIGH/.test(lines.join(""))) throw new Error("a private key is in the log");
});

const log = () => createLogger({ level: "debug", stream: { write: (line) => void lines.push(line) } });
const said = (text: string) => lines.some((line) => line.includes(text));
const path = (name: string) => join(dir, name);

/** Runs a part until the test ends. */
function start(part: { run(signal: AbortSignal): Promise<void> }): void {
  const stop = new AbortController();
  const ended = part.run(stop.signal);
  stack.defer(async () => {
    stop.abort();
    await ended;
  });
}

describe("the serving certificate from files", () => {
  const load = async (reload = true) =>
    certificateFromFiles(path("tls.crt"), path("tls.key"), { reload, clock: systemClock, log: log() });
  const write = async ({ cert = a.pem, key = a.keyPem }: { cert?: string; key?: string }) => {
    await writeFile(path("tls.crt"), cert);
    await writeFile(path("tls.key"), key);
  };

  test("is what the files hold", async () => {
    await write({ cert: a.pem + b.pem });
    const certificate = await load();
    expect(certificate.current()?.cert.toString()).toBe(a.pem + b.pem);
    expect(certificate.current()?.key.toString()).toBe(a.keyPem);
  });

  const unusable: { name: string; files?: { cert?: string; key?: string }; message: RegExp }[] = [
    { name: "missing files", message: /^tlsCertFile: .*tls\.crt and .*tls\.key cannot be used: ENOENT/ },
    {
      name: "a key of another certificate",
      files: { key: b.keyPem },
      message: /key does not belong to the certificate/,
    },
    { name: "an empty certificate", files: { cert: "" }, message: /the certificate cannot be read as PEM/ },
    { name: "half a key", files: { key: a.keyPem.slice(0, 60) }, message: /the private key cannot be read as PEM/ },
    { name: "files the wrong way round", files: { cert: a.keyPem, key: a.pem }, message: /certificate cannot be read/ },
  ];
  for (const { name, files, message } of unusable) {
    test(`ends the start with ${name}`, async () => {
      if (files !== undefined) await write(files);
      await expect(load()).rejects.toMatchObject({ code: "Invalid", message: expect.stringMatching(message) });
    });
  }

  test("ends the start with a key too short for TLS", async () => {
    const run = promisify(execFile);
    const args = ["req", "-x509", "-newkey", "rsa:512", "-nodes", "-subj", "/CN=x"];
    await run("openssl", [...args, "-keyout", path("tls.key"), "-out", path("tls.crt")]);
    await expect(load()).rejects.toThrow("key too small");
  });

  test("follows the files; half a change is a warning and keeps the old pair", async () => {
    await write({});
    const certificate = await load();
    let changes = 0;
    certificate.subscribe(() => {
      changes += 1;
    });
    start(certificate);
    await writeFileAtomic(path("tls.crt"), b.pem);
    await until(() => said("does not belong to the certificate"));
    expect(certificate.current()?.cert.toString()).toBe(a.pem);
    await writeFileAtomic(path("tls.key"), b.keyPem);
    await until(() => changes === 1);
    expect(certificate.current()?.cert.toString()).toBe(b.pem);
    expect(certificate.current()?.key.toString()).toBe(b.keyPem);
  });

  test("does not change with files that go, or that are written anew as they were", async () => {
    await write({});
    const certificate = await load();
    let changes = 0;
    const end = certificate.subscribe(() => {
      changes += 1;
    });
    start(certificate);
    await rm(path("tls.key"));
    await until(() => said("ENOENT"));
    await write({});
    await writeFileAtomic(path("tls.crt"), await readFile(path("tls.crt")));
    await write({ cert: b.pem, key: b.keyPem });
    await until(() => changes > 0);
    expect(changes).toBe(1);
    end();
    await write({});
    await until(() => certificate.current()?.cert.toString() === a.pem);
    expect(changes).toBe(1);
  });

  test("sees what changed between the first look and the first watch", async () => {
    await write({});
    const certificate = await load();
    await write({ cert: b.pem, key: b.keyPem });
    start(certificate);
    await until(() => certificate.current()?.cert.toString() === b.pem);
  });

  test("stays as it was without the feature gate", async () => {
    await write({});
    const certificate = await load(false);
    start(certificate);
    await write({ cert: b.pem, key: b.keyPem });
    const gated = await load(true);
    start(gated);
    expect(gated.current()?.cert.toString()).toBe(b.pem);
    expect(certificate.current()?.cert.toString()).toBe(a.pem);
  });
});

describe("the client CA", () => {
  const [ca1, ca2] = [issueAuthority("one"), issueAuthority("two")];
  const load = async () => loadClientCA({ file: path("ca.crt"), reload: true, clock: systemClock, log: log() });

  test("is the file's bundle, and follows it", async () => {
    await writeFile(path("ca.crt"), ca1.pem);
    const clientCA = await load();
    start(clientCA);
    const subjects = () => clientCA.roots().map(({ x509 }) => x509.subject);
    expect(subjects()).toEqual(["CN=one"]);
    let seen: string | undefined;
    clientCA.subscribe(() => {
      seen = clientCA.current().toString();
    });
    await writeFileAtomic(path("ca.crt"), ca2.pem + ca1.pem);
    await until(() => seen === ca2.pem + ca1.pem);
    expect(subjects()).toEqual(["CN=two", "CN=one"]);
  });

  test("stays as it was while the file is half written", async () => {
    await writeFile(path("ca.crt"), ca1.pem);
    const clientCA = await load();
    start(clientCA);
    const roots = clientCA.roots();
    await writeFile(path("ca.crt"), ca2.pem + ca1.pem.slice(0, 100));
    await until(() => said("certificate 2 of 2 is cut off"));
    expect(clientCA.roots()).toBe(roots);
    await writeFile(path("ca.crt"), "");
    await until(() => said("no PEM certificate"));
    expect(clientCA.roots()).toBe(roots);
  });

  test("ends the start without a usable file", async () => {
    await expect(load()).rejects.toThrow(/authentication\.x509\.clientCAFile: .*ca\.crt cannot be used: ENOENT/);
    await writeFile(path("ca.crt"), "no PEM");
    await expect(load()).rejects.toThrow("there is no PEM certificate in it");
  });
});
