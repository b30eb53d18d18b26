import { chmod, mkdir, mkdtemp, rm, symlink, utimes, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { gunzipSync } from "node:zlib";
import { expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { exec } from "../../../../agent/lib/exec.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { GzipBody } from "../../../../agent/server/logs/node-journal.ts";
import { createNodeLogsHandler } from "../../../../agent/server/logs/node-logs.ts";
import { heapBytes } from "../../../support/heap.ts";
import { serve } from "./http.ts";
import { hurried, openIn } from "./support.ts";

/** A stand-in for journalctl: what it does for its units is `script`, how it says that it knows one is `asked`. */
async function setup({
  enableQuery = false,
  script = 'printf "%s\\n" "$@"',
  asked = 'case "$*" in *=known.*|*=other.*) echo _SYSTEMD_UNIT=it; esac',
  hurry = 1,
} = {}) {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-node-logs-"));
  const rootDir = join(dir, "log");
  await mkdir(join(rootDir, "sub"), { recursive: true });
  await writeFile(join(rootDir, "a.log"), "0123456789");
  await utimes(join(rootDir, "a.log"), new Date("2026-01-02T03:04:05.678Z"), new Date("2026-01-02T03:04:05.678Z"));
  await writeFile(join(dir, "secret"), "top secret");
  const journalctl = join(dir, "journalctl");
  const known = `case "$*" in *_SYSTEMD_UNIT=*) ${asked}; exit; esac`;
  await writeFile(journalctl, `#!/bin/sh\n${known}\n${script}\n`);
  await chmod(journalctl, 0o755);
  const clock = hurry === 1 ? systemClock : hurried(hurry);
  const http = await serve(
    createNodeLogsHandler({ clock, log: silentLogger, enableQuery, rootDir, journalctl }),
    "/logs/",
    "/logs/{path*}",
  );
  return {
    dir,
    rootDir,
    http,
    get: http.get,
    [Symbol.asyncDispose]: async () => {
      await http[Symbol.asyncDispose]();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

test("serves a file with its length and time, and parts of it", async () => {
  await using t = await setup();
  const whole = await t.get("/logs/a.log");
  expect(whole).toMatchObject({ status: 200, text: "0123456789" });
  expect(whole.headers).toMatchObject({
    "content-length": "10",
    "content-type": "text/plain; charset=utf-8",
    "last-modified": "Fri, 02 Jan 2026 03:04:05 GMT",
    "accept-ranges": "bytes",
  });
  const part = await t.get("/logs/a.log", { headers: { range: "bytes=2-4" } });
  expect(part).toMatchObject({ status: 206, text: "234" });
  expect(part.headers["content-range"]).toBe("bytes 2-4/10");
  const beyond = await t.get("/logs/a.log", { headers: { range: "bytes=10-" } });
  expect(beyond).toMatchObject({ status: 416, text: "invalid range: failed to overlap" });
  expect(beyond.headers["content-range"]).toBe("bytes */10");
  const since = await t.get("/logs/a.log", { headers: { "if-modified-since": "Fri, 02 Jan 2026 03:04:05 GMT" } });
  expect(since).toMatchObject({ status: 304, text: "" });
  const stale = { range: "bytes=2-4", "if-range": "Fri, 02 Jan 2026 03:04:04 GMT" };
  expect(await t.get("/logs/a.log", { headers: stale })).toMatchObject({ status: 200, text: "0123456789" });
  const head = await t.get("/logs/a.log", { method: "HEAD" });
  expect(head).toMatchObject({ status: 200, text: "" });
  expect(head.headers["content-length"]).toBe("10");
});

test("lists directories as links, and nothing in a name becomes markup", async () => {
  await using t = await setup();
  await writeFile(join(t.rootDir, `<script>alert("x")<`), "");
  await writeFile(join(t.rootDir, "100% a?b#c:d&"), "found");
  const { status, text, headers } = await t.get("/logs/");
  expect(status).toBe(200);
  expect(headers["content-type"]).toBe("text/html; charset=utf-8");
  expect(text).toContain(`<a href="a.log">a.log</a>\n`);
  expect(text).toContain(`<a href="sub/">sub/</a>\n`);
  expect(text).not.toContain("<script>");
  const href = /href="(100[^"]*)"/.exec(text)?.[1];
  expect(await t.get(`/logs/${href}`)).toMatchObject({ status: 200, text: "found" });
  expect(await t.get("/logs/sub/")).toMatchObject({ status: 200 });
});

const redirects: { path: string; to: string }[] = [
  { path: "/logs/sub", to: "sub/" },
  { path: "/logs/sub?x=1", to: "sub/?x=1" },
  { path: "/logs/a.log/", to: "../a.log" },
  { path: "/logs/sub/index.html", to: "./" },
  { path: "/logs/index.html", to: "./" },
];
for (const { path, to } of redirects) {
  test(`${path} redirects to ${to}`, async () => {
    await using t = await setup();
    const answer = await t.get(path);
    expect(answer.status).toBe(301);
    expect(answer.headers.location).toBe(to);
  });
}

test("a directory's own page is shown in its place, as text", async () => {
  await using t = await setup();
  await writeFile(join(t.rootDir, "sub", "index.html"), "<b>page</b>");
  const answer = await t.get("/logs/sub/");
  expect(answer).toMatchObject({ status: 200, text: "<b>page</b>" });
  expect(answer.headers["content-type"]).toBe("text/plain; charset=utf-8");
});

for (const path of [
  "/logs/../secret",
  "/logs/..%2fsecret",
  "/logs/%2e%2e/secret",
  "/logs/sub/../../secret",
  "/logs/sub/..%2f..%2fsecret",
  "/logs//../secret",
  "/logs/....//secret",
  "/logs/%2fsecret",
]) {
  test(`${path} does not lead out`, async () => {
    await using t = await setup();
    // As a client that does not tidy its paths; the router redirects some to where they really lead.
    const answer = await t.get(path);
    expect([301, 404]).toContain(answer.status);
    expect(answer.text).not.toContain("top secret");
  });
}

test("malformed paths and missing files are answered", async () => {
  await using t = await setup();
  expect(await t.get("/logs/%zz")).toMatchObject({ status: 400 });
  expect(await t.get("/logs/a%00b")).toMatchObject({ status: 400 });
  expect(await t.get("/logs/missing")).toMatchObject({ status: 404, text: "404 page not found\n" });
  expect(await t.get(`/logs/${"x".repeat(5000)}`)).toMatchObject({ status: 404 });
  expect(await t.get("/logs/a.log/b")).toMatchObject({ status: 404 });
});

test("links are followed, special files are not opened", async () => {
  await using t = await setup();
  await symlink(join(t.dir, "secret"), join(t.rootDir, "link"));
  await symlink("loop", join(t.rootDir, "loop"));
  await symlink("/dev/zero", join(t.rootDir, "zero"));
  await exec("mkfifo", [join(t.rootDir, "fifo")], { timeoutMs: 5_000 });
  const socket = createServer().listen(join(t.rootDir, "socket"));
  try {
    expect(await t.get("/logs/link")).toMatchObject({ status: 200, text: "top secret" });
    expect(await t.get("/logs/loop")).toMatchObject({ status: 404 });
    for (const name of ["zero", "fifo", "socket"]) {
      expect(await t.get(`/logs/${name}`)).toMatchObject({ status: 403 });
    }
  } finally {
    await new Promise((resolve) => void socket.close(resolve));
  }
  expect(await openIn(t.dir)).toEqual([]);
});

test("a large file is streamed, and closed when the client goes", async () => {
  await using t = await setup();
  await writeFile(join(t.rootDir, "big"), Buffer.alloc(64 * 1024 * 1024));
  const before = process.memoryUsage().arrayBuffers;
  const answer = await t.http.open("/logs/big");
  expect(answer.headers).toMatchObject({ "content-length": "67108864", "content-type": "application/octet-stream" });
  answer.pause();
  await sleep(50);
  expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(8 * 1024 * 1024);
  answer.destroy();
  await expect.poll(async () => await openIn(t.rootDir)).toEqual([]);
  await expect.poll(() => t.http.under.size).toBe(0);
});

test("without the option queries are paths like others", async () => {
  await using t = await setup();
  expect((await t.get("/logs/?query=known")).headers["content-type"]).toBe("text/html; charset=utf-8");
});

test("a service's journal is what journalctl says, on both of its outputs", async () => {
  await using t = await setup({ enableQuery: true, script: 'printf "%s\\n" "$@"; echo complains >&2; exit 1' });
  const answer = await t.get("/logs/?query=known&query=other&tailLines=3&untilTime=2026-01-02T03:04:05Z");
  expect(answer.status).toBe(200);
  expect(answer.headers["content-type"]).toBe("text/plain;charset=UTF-8");
  const said = answer.text.split("\n").filter((line) => line !== "complains");
  expect(said.slice(3, -1)).toEqual([
    "--until=2026-01-02 03:04:05 UTC",
    "--pager-end",
    "--lines=3",
    "--unit=known",
    "--unit=other",
  ]);
  expect(answer.text).toContain("complains");
});

test("a journal is compressed for who asks for exactly that", async () => {
  await using t = await setup({ enableQuery: true, script: "yes line | head -c 1000000" });
  const answer = await t.get("/logs/?query=known", { headers: { "accept-encoding": "gzip" } });
  expect(answer.headers["content-encoding"]).toBe("gzip");
  expect(answer.body.length).toBeLessThan(50_000);
  expect(gunzipSync(answer.body).toString()).toBe("line\n".repeat(200_000));
  const plain = await t.get("/logs/?query=known", { headers: { "accept-encoding": "gzip, deflate" } });
  expect(plain.headers["content-encoding"]).toBeUndefined();
  expect(plain.body.length).toBe(1_000_000);
});

test("services that the journal does not know have files", async () => {
  await using t = await setup({ enableQuery: true });
  await writeFile(join(t.rootDir, "one"), "first");
  await writeFile(join(t.rootDir, "two.log"), "second");
  await mkdir(join(t.rootDir, "three"));
  await writeFile(join(t.rootDir, "three", "three.log"), "third");
  expect((await t.get("/logs/?query=one&query=two&query=three")).text).toBe("firstsecondthird");
  expect((await t.get("/logs/?query=four")).text).toContain("no log of four");
  expect((await t.get("/logs/?query=..&query=.")).text).toContain("no log of ..");
  const both = await t.get("/logs/?query=known&query=one&tailLines=1");
  expect(both.text).toContain("--unit=known");
  expect(both.text).toContain("try without options");
});

test("a journal that cannot be asked is no journal that does not know the service", async () => {
  await using t = await setup({ enableQuery: true, asked: "echo Failed to open journal >&2; exit 1" });
  await writeFile(join(t.rootDir, "two.log"), "second");
  const why = "the journal could not be asked (";
  const { text } = await t.get("/logs/?query=known");
  expect(text).toContain(`no log of known: ${why}`);
  expect(text).toContain("exited with 1: Failed to open journal)");
  expect((await t.get("/logs/?query=known&tailLines=1")).text).toContain(`no log of known: ${why}`);
  expect((await t.get("/logs/?query=two")).text).toBe("second");
});

test("a journal that ends with 1 where it has nothing just does not know the service", async () => {
  await using t = await setup({ enableQuery: true, asked: "exit 1" });
  expect((await t.get("/logs/?query=known")).text).toContain("no log of known: the journal does not know it");
});

test("each piece of a long body leaves nothing behind", async () => {
  using body = new GzipBody(async () => {});
  const piece = Buffer.from("x");
  const writeMany = async () => {
    for (let i = 0; i < 10_000; i += 1) await body.write(piece);
  };
  await writeMany();
  const before = heapBytes();
  await writeMany();
  expect(heapBytes() - before).toBeLessThan(1 << 19);
  await body.end();
});

test("a queried file must lie in the root", async () => {
  await using t = await setup({ enableQuery: true });
  await symlink(join(t.dir, "secret"), join(t.rootDir, "link"));
  await writeFile(join(t.rootDir, "sub", "b.log"), "b");
  expect(await t.get("/logs/?query=/a.log")).toMatchObject({ status: 200, text: "0123456789" });
  expect(await t.get("/logs/?query=%5Csub%5Cb.log")).toMatchObject({ status: 200, text: "b" });
  for (const query of ["/link", "/missing", "/x%00"]) {
    const answer = await t.get(`/logs/?query=${query}`);
    expect(answer.status).toBe(406);
    expect(answer.text).not.toContain("top secret");
  }
  expect(await t.get("/logs/?query=../../secret")).toMatchObject({ status: 406 });
  expect(await t.get("/logs/sub/?query=known")).toMatchObject({ status: 406 });
  expect(await t.get("/logs/sub/b.log")).toMatchObject({ status: 200, text: "b" });
});

test("a journalctl that does not end is killed", async () => {
  await using t = await setup({ enableQuery: true, script: "echo begin; exec sleep 1000", hurry: 15 });
  expect((await t.get("/logs/?query=known")).text).toBe("begin\n");
  expect((await exec("pgrep", ["-f", `${t.dir}/journalctl`], { timeoutMs: 5_000 })).stdout).toBe("");
});

test("a client that goes ends journalctl, even one that writes without an end", async () => {
  await using t = await setup({ enableQuery: true, script: 'echo $$ > "$0.pid"; exec yes' });
  for (const headers of [{}, { "accept-encoding": "gzip" }]) {
    const answer = await t.http.open("/logs/?query=known", { headers });
    answer.pause();
    await expect
      .poll(async () => (await exec("cat", [`${t.dir}/journalctl.pid`], { timeoutMs: 5_000 })).stdout)
      .not.toBe("");
    const pid = (await exec("cat", [`${t.dir}/journalctl.pid`], { timeoutMs: 5_000 })).stdout.trim();
    const before = process.memoryUsage().arrayBuffers;
    await sleep(200); // time to print hundreds of megabytes
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 * 1024 * 1024);
    answer.destroy();
    await expect.poll(() => t.http.under.size).toBe(0);
    expect((await exec("kill", ["-0", pid], { timeoutMs: 5_000 })).failure).toBe("exit");
    await rm(`${t.dir}/journalctl.pid`);
  }
  expect(t.http.failures).toEqual([]);
});

test("a node without journalctl has files only", async () => {
  await using t = await setup({ enableQuery: true });
  await rm(join(t.dir, "journalctl"));
  await writeFile(join(t.rootDir, "known.log"), "from a file");
  expect((await t.get("/logs/?query=known")).text).toBe("from a file");
});
