import { appendFile, mkdir, open, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { exec } from "../../../../agent/lib/exec.ts";
import { lineBytesMax } from "../../../../agent/server/logs/reader.ts";
import type { LogOptions } from "../../../../agent/server/logs/options.ts";
import { isWatched, line, logDir, openIn, reading, readingSlowly } from "./support.ts";

const numbers = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => String(from + i));
const lines = (texts: string[]) => texts.map((text) => `${text}\n`).join("");

test("reads a log to its end", async () => {
  await using t = await logDir();
  await t.append(...numbers(0, 20_000));
  await appendFile(t.path, line("no end").slice(0, -1));
  const r = reading(t.path);
  await r.done;
  expect(r.text()).toBe(`${lines(numbers(0, 20_000))}no end`);
});

const options = [
  { name: "tail", options: { tailLines: 2 }, want: "18\n19\n" },
  { name: "tail of none", options: { tailLines: 0 }, want: "" },
  { name: "tail beyond the start", options: { tailLines: 50 }, want: lines(numbers(0, 20)) },
  { name: "a limit in the middle of a line", options: { limitBytes: 24 }, want: `${lines(numbers(0, 11))}1` },
  { name: "a limit beyond the end", options: { limitBytes: 1_000_000 }, want: lines(numbers(0, 20)) },
  {
    name: "a limit counts times",
    options: { limitBytes: 33, timestamps: true },
    want: "2026-01-02T03:04:05.678901234Z 0\n",
  },
  { name: "tail and limit", options: { tailLines: 2, limitBytes: 4 }, want: "18\n1" },
  { name: "a limit is not used up by the other stream", options: { stream: "Stderr", limitBytes: 2 }, want: "" },
] as const;
for (const { name, options: chosen, want } of options) {
  test(`reads with ${name}`, async () => {
    await using t = await logDir();
    await t.append(...numbers(0, 20));
    const r = reading(t.path, chosen);
    await r.done;
    expect(r.text()).toBe(want);
  });
}

test("a limit is kept to the byte at every length", async () => {
  await using t = await logDir();
  await t.append(...numbers(0, 30));
  const all = lines(numbers(0, 30));
  for (let limitBytes = 1; limitBytes <= all.length + 2; limitBytes += 1) {
    const r = reading(t.path, { limitBytes });
    await r.done;
    expect(r.text()).toBe(all.slice(0, limitBytes));
  }
});

test("a missing file, a directory and a fifo are errors that name the file, and none hangs", async () => {
  await using t = await logDir();
  await expect(reading(t.path).done).rejects.toThrow(`${t.path}: no such file or directory`);
  await expect(reading(t.dir).done).rejects.toThrow(/not a regular file/);
  await exec("mkfifo", [t.path], { timeoutMs: 5_000 });
  await expect(reading(t.path).done).rejects.toThrow(/not a regular file/);
  await rm(t.path);
  await symlink(t.path, t.path);
  await expect(reading(t.path).done).rejects.toThrow(/ELOOP/);
  expect(await openIn(t.dir)).toEqual([]);
});

test("a file in no known format is an error", async () => {
  await using t = await logDir();
  await writeFile(t.path, "root:x:0:0:root:/root:/bin/bash\n");
  await expect(reading(t.path).done).rejects.toThrow(/first line/);
  expect(await openIn(t.dir)).toEqual([]);
});

test("a line that is too long is skipped in bounded memory, and the rest is read", async () => {
  await using t = await logDir();
  const file = await open(t.path, "w");
  await file.write(line("a"));
  const piece = Buffer.alloc(4 * 1024 * 1024, 0x78);
  await file.write("2026-01-02T03:04:05Z stdout F ");
  for (let i = 0; i < 16; i += 1) await file.write(piece);
  await file.write(`\n${line("b")}${line("y".repeat(lineBytesMax - 100))}${line("c")}`);
  await file.close();
  const before = process.memoryUsage();
  let peak = 0;
  const chunks: string[] = [];
  const r = reading(
    t.path,
    {},
    {
      write: (chunk) => {
        const now = process.memoryUsage();
        peak = Math.max(peak, now.arrayBuffers - before.arrayBuffers);
        chunks.push(chunk.toString());
        return Promise.resolve();
      },
    },
  );
  await r.done;
  expect(chunks.join("")).toBe(`a\nb\n${"y".repeat(lineBytesMax - 100)}\nc\n`);
  expect(peak).toBeLessThan(16 * lineBytesMax);
});

test("follows what is appended, also in pieces of a line", async () => {
  await using t = await logDir();
  await t.append("a");
  await using r = reading(t.path, { follow: true });
  await r.saw("a\n");
  await t.append("b", "c");
  await r.saw("a\nb\nc\n");
  await appendFile(t.path, line("in pieces").slice(0, 10));
  await appendFile(t.path, line("in pieces").slice(10, -3));
  await t.append(); // nothing
  await appendFile(t.path, line("in pieces").slice(-3));
  await r.saw("a\nb\nc\nin pieces\n");
  expect(await r.end()).toBe("a\nb\nc\nin pieces\n");
});

test("follows from the tail", async () => {
  await using t = await logDir();
  await t.append("a", "b");
  await using none = reading(t.path, { follow: true, tailLines: 0 });
  await using one = reading(t.path, { follow: true, tailLines: 1 });
  await one.saw("b\n");
  await t.append("c", "d");
  await one.saw("b\nc\nd\n");
  expect(await none.end()).toBe("c\nd\n");
});

test("a limit ends a follower", async () => {
  await using t = await logDir();
  await t.append("a");
  await using r = reading(t.path, { follow: true, limitBytes: 5 });
  await r.saw("a\n");
  await t.append("bcdef");
  await r.done;
  expect(r.text()).toBe("a\nbcd");
});

test("what the container wrote last comes before the end", async () => {
  await using t = await logDir();
  await t.append("a");
  let lastWords: Promise<void> | undefined;
  const r = reading(
    t.path,
    { follow: true },
    {
      isRunning: async () => {
        lastWords ??= (async () => {
          await t.append("last words"); // between the look at the file and the answer
          await appendFile(t.path, line("cut off").slice(0, -1));
        })();
        await lastWords;
        return false;
      },
    },
  );
  await r.done;
  expect(r.text()).toBe("a\nlast words\ncut off");
});

test("an answer of the runtime that is an error ends the follower with it", async () => {
  await using t = await logDir();
  await t.append("a");
  const r = reading(t.path, { follow: true }, { isRunning: () => Promise.reject(new Error("runtime is broken")) });
  await expect(r.done).rejects.toThrow("runtime is broken");
  expect(r.text()).toBe("a\n");
  expect(await openIn(t.dir)).toEqual([]);
});

test("a runtime that does not answer delays no line and keeps no file of a client that has gone", async () => {
  await using t = await logDir();
  await t.append("a");
  const r = reading(t.path, { follow: true }, { isRunning: () => new Promise(() => {}) });
  await r.saw("a\n");
  await t.append("b");
  await r.saw("a\nb\n");
  await t.rotate();
  await t.append("c");
  await r.saw("a\nb\nc\n");
  await r[Symbol.asyncDispose]();
  expect(await openIn(t.dir)).toEqual([]);
  expect(await isWatched(t.dir)).toBe(false);
});

test("an unfinished line is told once, although its successor is listed and cannot be opened", async () => {
  await using t = await logDir();
  await t.append("a");
  await appendFile(t.path, line("cut off").slice(0, -1));
  await using r = reading(t.path, { follow: true });
  await r.saw("a\n");
  await t.rotate();
  await symlink(join(t.dir, "nowhere"), join(t.dir, "0.log.20260102-030459"));
  await new Promise((resolve) => void setTimeout(resolve, 300)); // several looks
  expect(await r.end()).toBe("a\ncut off");
});

test("a rotation loses and doubles nothing, whatever is written to the old file until the new one is used", async () => {
  await using t = await logDir();
  await t.append("0");
  await using r = reading(t.path, { follow: true }, { clock: systemClock });
  await r.saw("0\n");
  for (let i = 1; i < 16; i += 4) {
    await t.append(String(i));
    const old = await t.rotate();
    await appendFile(old, line(String(i + 1)));
    await writeFile(t.path, line(String(i + 3)));
    await appendFile(old, line(String(i + 2))); // the runtime's last line for the old file
    await r.saw(lines(numbers(0, i + 4)));
  }
  expect(await r.end()).toBe(lines(numbers(0, 17)));
  expect(await openIn(t.dir)).toEqual([]);
});

test("rotations that happen while the client does not read are all caught up with, compressed ones too", async () => {
  await using t = await logDir();
  await t.append("0");
  await using r = await readingSlowly(t.path);
  const files: string[] = [];
  for (let i = 1; i <= 6; i += 1) {
    files.push(await t.rotate());
    await writeFile(t.path, line(String(i)));
    await new Promise((resolve) => void setTimeout(resolve, 30));
  }
  const compress = promisify(gzip);
  for (const [i, file] of files.slice(0, 5).entries()) {
    await writeFile(`${file}.gz`, await compress(line(String(i))));
    await rm(file);
  }
  r.resume();
  await expect.poll(r.text).toBe(lines(numbers(0, 7)));
  await t.append("7");
  await expect.poll(r.text).toBe(lines(numbers(0, 8)));
  expect(await openIn(t.dir)).toEqual([t.path]);
});

test("a file that was truncated is read from its start", async () => {
  await using t = await logDir();
  await t.append("a", "b", "c");
  await using r = reading(t.path, { follow: true });
  await r.saw("a\nb\nc\n");
  await truncate(t.path);
  await t.append("d");
  await r.saw("a\nb\nc\nd\n");
  expect(await r.end()).toBe("a\nb\nc\nd\n");
});

test("a file that goes away while it is followed ends with the container", async () => {
  await using t = await logDir();
  await t.append("a");
  await using r = reading(t.path, { follow: true });
  await r.saw("a\n");
  await rm(t.dir, { recursive: true });
  expect(await r.end()).toBe("a\n");
});

test("between rename and the runtime's new file there is none for a moment", async () => {
  await using t = await logDir();
  await t.append("a");
  await t.rotate();
  await using r = reading(t.path);
  await t.append("b");
  await r.done;
  expect(r.text()).toBe("b\n");
});

test("Docker's link is followed, and its target's rotation, too", async () => {
  await using t = await logDir();
  await mkdir(join(t.dir, "docker"));
  const target = join(t.dir, "docker", "x-json.log");
  const json = (log: string) => `${JSON.stringify({ log, stream: "stdout", time: "2026-01-02T03:04:05Z" })}\n`;
  await writeFile(target, json("a\n"));
  await symlink(target, t.path);
  await using r = reading(t.path, { follow: true });
  await r.saw("a\n");
  await rm(target);
  await writeFile(target, json("b\n"));
  await r.saw("a\nb\n");
  expect(await r.end()).toBe("a\nb\n");
});

test("a client that goes leaves nothing open, wherever the reader stands", async () => {
  await using t = await logDir();
  await t.append(...numbers(0, 1000));
  for (const options of [{ follow: true }, { follow: true, tailLines: 1 }, {}] as Partial<LogOptions>[]) {
    const gone = new Error("client gone");
    const blocked = Promise.withResolvers<void>();
    const stuck = reading(t.path, options, { write: async () => await blocked.promise });
    const waiting = reading(t.path, options);
    await new Promise((resolve) => void setTimeout(resolve, 10));
    await waiting[Symbol.asyncDispose]();
    expect(await openIn(t.dir)).toEqual([t.path]);
    expect(await isWatched(t.dir)).toBe(options.follow ?? false);
    blocked.reject(gone);
    await expect(stuck.done).rejects.toBe(gone);
  }
  expect(await openIn(t.dir)).toEqual([]);
  expect(await isWatched(t.dir)).toBe(false);
});

test("a hundred followers of one file get everything", async () => {
  await using t = await logDir();
  await t.append("start");
  const followers = Array.from({ length: 100 }, () => reading(t.path, { follow: true, tailLines: 0 }));
  try {
    await expect.poll(async () => (await openIn(t.dir)).length).toBe(100);
    await new Promise((resolve) => void setTimeout(resolve, 50));
    for (let i = 0; i < 50; i += 1) {
      await t.append(...numbers(i * 20, i * 20 + 20));
      await new Promise((resolve) => void setTimeout(resolve, 2));
    }
    const want = lines(numbers(0, 1000));
    for (const follower of followers) await follower.saw(want);
  } finally {
    for (const follower of followers) await follower[Symbol.asyncDispose]();
  }
  expect(await openIn(t.dir)).toEqual([]);
});
