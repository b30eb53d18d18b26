import { appendFile, mkdir, mkdtemp, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { expect, test } from "vitest";
import { openIn, reading, readingSlowly } from "./support.ts";

interface RotateOptions {
  /** `max-file` of the driver. */
  maxFiles?: number;
  compress?: boolean;
}

/** A container's log as dockerd keeps it, behind the link that stands where pods' logs lie. */
async function dockerLog() {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-docker-log-"));
  const container = join(dir, "containers", "c0ffee");
  const active = join(container, "c0ffee-json.log");
  const path = join(dir, "0.log");
  await mkdir(container, { recursive: true });
  await symlink(active, path);
  let nanos = 0;
  const record = (log: string, stream: string, attrs: Record<string, string> | undefined) => {
    nanos += 1;
    const time = `2026-01-02T03:04:05.${String(nanos).padStart(9, "0")}Z`;
    return `${JSON.stringify({ log, stream, ...(attrs === undefined ? {} : { attrs }), time })}\n`;
  };
  return {
    dir,
    path,
    active,
    append: async (log: string, stream = "stdout", attrs?: Record<string, string>) =>
      await appendFile(active, record(log, stream, attrs)),
    /** What the driver does before it opens the next file. */
    rotate: async ({ maxFiles = 5, compress = false }: RotateOptions = {}) => {
      const suffix = compress ? ".gz" : "";
      await rm(`${active}.${maxFiles - 1}${suffix}`, { force: true });
      for (let i = maxFiles - 1; i > 1; i -= 1) {
        await rename(`${active}.${i - 1}${suffix}`, `${active}.${i}${suffix}`).catch(() => undefined);
      }
      await rename(active, `${active}.1`);
      if (!compress) return;
      await writeFile(`${active}.1.gz`, gzipSync(await readFile(`${active}.1`)));
      await rm(`${active}.1`);
    },
    [Symbol.asyncDispose]: async () => await rm(dir, { recursive: true, force: true }),
  };
}

const texts = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => `${from + i}\n`).join("");

test("streams, pieces of a line and attributes are read as the container wrote them", async () => {
  await using t = await dockerLog();
  await t.append("a".repeat(16 * 1024));
  await t.append("b\n", "stdout", { tag: "x" });
  await t.append("oops \u0000 é\n", "stderr");
  await t.append("no end");
  const both = `${"a".repeat(16 * 1024)}b\noops \u0000 é\nno end`;
  const cases = [
    { options: {}, want: both },
    { options: { stream: "Stderr" as const }, want: "oops \u0000 é\n" },
    { options: { tailLines: 2 }, want: "oops \u0000 é\nno end" },
    { options: { tailLines: 1, timestamps: true }, want: "2026-01-02T03:04:05.000000004Z no end" },
    { options: { since: { seconds: 1_767_323_045, nanos: 3 } }, want: "oops \u0000 é\nno end" },
    { options: { limitBytes: 16 * 1024 + 1 }, want: `${"a".repeat(16 * 1024)}b` },
  ];
  for (const { options, want } of cases) {
    await using r = reading(t.path, options);
    await r.done;
    expect(r.text()).toBe(want);
  }
});

for (const compress of [false, true]) {
  test(`a follower loses and doubles nothing over rotations${compress ? " that compress" : ""}`, async () => {
    await using t = await dockerLog();
    await t.append("0\n");
    await using r = reading(t.path, { follow: true });
    await r.saw(texts(0, 1));
    for (let i = 1; i < 12; i += 2) {
      await t.append(`${i}\n`);
      await t.rotate({ compress });
      await t.append(`${i + 1}\n`);
      await r.saw(texts(0, i + 2));
    }
    expect(await r.end()).toBe(texts(0, 13));
    expect(await openIn(t.dir)).toEqual([]);
  });

  test(`a slow client gets all files that came meanwhile in order${compress ? ", compressed ones too" : ""}`, async () => {
    await using t = await dockerLog();
    await t.append("0\n");
    await using r = await readingSlowly(t.path);
    for (let i = 1; i <= 12; i += 1) {
      await t.rotate({ compress, maxFiles: 20 });
      await t.append(`${i}\n`);
    }
    r.resume();
    await expect.poll(r.text).toBe(texts(0, 13));
    await t.append("13\n");
    await expect.poll(r.text).toBe(texts(0, 14));
    expect(await openIn(t.dir)).toEqual([t.active]);
  });

  test(`whoever is too slow goes on with the oldest file that is left${compress ? ", compressed" : ""}`, async () => {
    await using t = await dockerLog();
    await t.append("0\n");
    await using r = await readingSlowly(t.path);
    for (let i = 1; i <= 5; i += 1) {
      await t.rotate({ compress, maxFiles: 3 });
      await t.append(`${i}\n`);
    }
    r.resume();
    await expect.poll(r.text).toBe(`0\n${texts(3, 6)}`);
  });
}

test("files that were rotated away before are not read again when the log itself is made anew", async () => {
  await using t = await dockerLog();
  await t.append("0\n");
  await t.rotate();
  await t.append("1\n");
  await using r = reading(t.path, { follow: true });
  await r.saw("1\n");
  await rm(t.active);
  await t.append("2\n");
  await r.saw("1\n2\n");
  expect(await r.end()).toBe("1\n2\n");
});

test("lines that are alike are told apart by their times", async () => {
  await using t = await dockerLog();
  const long = "x".repeat(16 * 1024);
  await t.append(long);
  await using r = reading(t.path, { follow: true });
  await r.saw(long);
  await t.rotate({ compress: true });
  await t.append(long);
  await r.saw(long + long);
  expect(await r.end()).toBe(long + long);
});

test("a request between Docker's rename and its new file waits for that", async () => {
  await using t = await dockerLog();
  await t.append("0\n");
  await t.rotate();
  await using r = reading(t.path);
  await t.append("1\n");
  await r.done;
  expect(r.text()).toBe("1\n");
});

test("a link to nowhere is an error that says so", async () => {
  await using t = await dockerLog();
  await using r = reading(t.path);
  await expect(r.done).rejects.toThrow("c0ffee-json.log: no such file or directory");
});
