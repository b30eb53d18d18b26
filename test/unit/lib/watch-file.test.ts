import { mkdir, mkdtemp, readdir, readFile, rename, rm, stat, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { writeFileAtomic } from "../../../agent/lib/atomic-file.ts";
import { type Clock, systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { rearmMs, watchFiles } from "../../../agent/lib/watch-file.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { until } from "../kube/support.ts";

let dir: string;
let stack: AsyncDisposableStack;

beforeEach(async () => {
  stack = new AsyncDisposableStack();
  dir = await mkdtemp(join(tmpdir(), "nodelet-watch-"));
  stack.defer(async () => rm(dir, { recursive: true, force: true }));
});
afterEach(async () => stack.disposeAsync());

/** Follows files and reads the first one at each change; `contents` are what was seen, changes only. */
function follow(files: string[], clock: Clock = systemClock) {
  const contents: string[] = [];
  let calls = 0;
  const stop = new AbortController();
  const onChange = async () => {
    calls += 1;
    const text = await readFile(files[0] ?? "", "utf8").catch(() => "gone");
    if (text !== contents.at(-1)) contents.push(text);
  };
  const ended = watchFiles({ files, onChange, clock, log: silentLogger }, stop.signal);
  stack.defer(async () => {
    stop.abort();
    await ended;
  });
  return {
    contents,
    calls: () => calls,
    sees: async (text: string) => until(() => contents.at(-1) === text),
  };
}

describe("watchFiles", () => {
  test("calls once at start, also when there is nothing to see", async () => {
    const { sees, calls } = follow([join(dir, "a")]);
    await sees("gone");
    expect(calls()).toBe(1);
  });

  test("sees a rename over the file, a write into it, its removal and its return", async () => {
    const file = join(dir, "a");
    await writeFile(file, "1");
    const { sees, contents } = follow([file]);
    await sees("1");
    await writeFileAtomic(file, "2");
    await sees("2");
    await writeFile(file, "3");
    await sees("3");
    await rm(file);
    await sees("gone");
    await writeFile(file, "4");
    await sees("4");
    expect(contents.at(-1)).toBe("4");
  });

  test("sees Kubernetes replace the ..data directory of a volume, again and again", async () => {
    const publish = async (version: string) => {
      await mkdir(join(dir, `..${version}`));
      await writeFile(join(dir, `..${version}`, "ca.crt"), version);
      await symlink(`..${version}`, join(dir, "..data_tmp"));
      await rename(join(dir, "..data_tmp"), join(dir, "..data"));
    };
    await publish("v1");
    await symlink("..data/ca.crt", join(dir, "ca.crt"));
    // Reached over a link from elsewhere, as the node's files often are.
    await mkdir(join(dir, "etc"));
    await symlink(join(dir, "ca.crt"), join(dir, "etc", "ca.crt"));
    const { sees, contents } = follow([join(dir, "etc", "ca.crt")]);
    await sees("v1");
    for (const version of ["v2", "v3"]) {
      await publish(version);
      await sees(version);
    }
    await rm(join(dir, "..v1"), { recursive: true });
    await publish("v4");
    await sees("v4");
    expect(contents.at(-1)).toBe("v4");
  });

  test("sees a link lead elsewhere, and its target change", async () => {
    await mkdir(join(dir, "x"));
    await writeFile(join(dir, "x", "pair-1.pem"), "1");
    await writeFile(join(dir, "pair-2.pem"), "2");
    const link = join(dir, "current.pem");
    await symlink(join("x", "pair-1.pem"), link);
    const { sees, contents } = follow([link]);
    await sees("1");
    await writeFileAtomic(join(dir, "x", "pair-1.pem"), "1b");
    await sees("1b");
    await symlink("pair-2.pem", `${link}.tmp`);
    await rename(`${link}.tmp`, link);
    await sees("2");
    expect(contents.at(-1)).toBe("2");
  });

  test("sees a directory that comes later, goes and comes back", async () => {
    const file = join(dir, "pki", "deep", "a");
    const { sees, contents } = follow([file]);
    await sees("gone");
    for (const text of ["1", "2"]) {
      await mkdir(join(dir, "pki", "deep"), { recursive: true });
      await writeFile(file, text);
      await sees(text);
      await rm(join(dir, "pki"), { recursive: true });
      await sees("gone");
    }
    expect(contents.at(-1)).toBe("gone");
  });

  test("watches several files", async () => {
    const files = [join(dir, "a"), join(dir, "b")];
    await writeFile(files[0] ?? "", "1");
    const { sees, calls } = follow(files);
    await sees("1");
    const before = calls();
    await writeFile(files[1] ?? "", "x");
    await until(() => calls() > before);
  });

  test("does not call for other files of the directory", async () => {
    const file = join(dir, "a");
    await writeFile(file, "1");
    const { sees, calls } = follow([file]);
    await sees("1");
    for (let i = 0; i < 20; i += 1) await writeFile(join(dir, "other"), String(i));
    await writeFile(file, "2");
    await sees("2");
    expect(calls()).toBeLessThanOrEqual(3);
  });

  test("looks again after a minute, whatever it was not told, and after a failure", async () => {
    const clock = new FakeClock();
    const stop = new AbortController();
    let calls = 0;
    const fails = true;
    const ended = watchFiles(
      {
        files: [join(dir, "a")],
        onChange: () => {
          calls += 1;
          if (fails) throw new Error("unreadable");
        },
        clock,
        log: silentLogger,
      },
      stop.signal,
    );
    await until(() => calls === 1 && clock.waiting === 1);
    await clock.advance(rearmMs - 1);
    expect(calls).toBe(1);
    await clock.advance(1);
    await until(() => calls === 2);
    stop.abort();
    await ended;
    expect(clock.waiting).toBe(0);
  });

  test("sees a change that keeps size and time of modification", async () => {
    const file = join(dir, "a");
    await writeFile(file, "1");
    await utimes(file, 1, 1);
    const { sees, contents } = follow([file]);
    await sees("1");
    await writeFile(file, "2");
    await utimes(file, 1, 1);
    await sees("2");
    expect(contents.at(-1)).toBe("2");
  });

  test("ends at once and leaves no watcher behind", async () => {
    const file = join(dir, "a");
    const stop = new AbortController();
    const { ino } = await stat(dir);
    const isWatched = async () => {
      const names = await readdir("/proc/self/fdinfo");
      const infos = await Promise.all(
        names.map((name) => readFile(`/proc/self/fdinfo/${name}`, "utf8").catch(() => "")),
      );
      return infos.some((info) => info.includes(`ino:${ino.toString(16)} `));
    };
    let calls = 0;
    const onChange = () => {
      calls += 1;
    };
    const ended = watchFiles({ files: [file], onChange, clock: systemClock, log: silentLogger }, stop.signal);
    await until(() => calls === 1);
    expect(await isWatched()).toBe(true);
    stop.abort();
    await ended;
    await writeFile(file, "1");
    await settle();
    expect(await isWatched()).toBe(false);
    expect(calls).toBe(1);
  });
});
