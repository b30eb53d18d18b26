import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, expect, test, vi } from "vitest";
import type { ExecResult } from "../../../agent/lib/exec.ts";
import { createLogger } from "../../../agent/lib/log.ts";
import { openFilesLimits, setOOMScore, setOpenFilesMax } from "../../../agent/roles/process-limits.ts";

const header = "Limit                     Soft Limit           Hard Limit           Units     \n";
const limits = (soft: string, hard: string) => `${header}Max open files            ${soft}    ${hard}    files     \n`;
const good: ExecResult = {
  code: 0,
  signal: undefined,
  stdout: "",
  stderr: "",
  truncated: false,
  durationMs: 1,
  message: "prlimit succeeded",
};
const refused: ExecResult = { ...good, code: 1, failure: "exit", message: "prlimit exited with 1: not permitted" };
const missing: ExecResult = { ...good, code: undefined, failure: "spawn", message: "prlimit could not be started" };

const lines: string[] = [];
const log = createLogger({ level: "info", stream: { write: (line) => void lines.push(line) } });
const procDir = await mkdtemp(join(tmpdir(), "nodelet-limits-"));

beforeEach(() => {
  lines.length = 0;
});
afterAll(() => rm(procDir, { recursive: true, force: true }));

test("limits as the kernel prints them", () => {
  expect(openFilesLimits(limits("1024", "524288"))).toEqual({ soft: 1024, hard: 524_288 });
  expect(openFilesLimits(limits("unlimited", "unlimited"))).toEqual({ soft: Infinity, hard: Infinity });
  expect(openFilesLimits("")).toEqual({ soft: 0, hard: 0 });
});

const cases: { name: string; soft: string; answer: ExecResult; wantCalls: number; wantLog: RegExp | undefined }[] = [
  { name: "a lower limit is raised", soft: "1024", answer: good, wantCalls: 1, wantLog: undefined },
  { name: "a higher one is lowered", soft: "2000000", answer: good, wantCalls: 1, wantLog: undefined },
  { name: "the right one is left", soft: "1000000", answer: good, wantCalls: 0, wantLog: undefined },
  {
    name: "one that may not be raised is told once",
    soft: "1024",
    answer: refused,
    wantCalls: 1,
    wantLog: /LimitNOFILE/,
  },
  { name: "without prlimit, too", soft: "1024", answer: missing, wantCalls: 1, wantLog: /could not be started/ },
  { name: "without prlimit, enough is enough", soft: "unlimited", answer: missing, wantCalls: 1, wantLog: undefined },
];
for (const { name, soft, answer, wantCalls, wantLog } of cases) {
  test(`open files: ${name}`, async () => {
    await writeFile(join(procDir, "limits"), limits(soft, soft));
    const run = vi.fn(async () => answer);
    await setOpenFilesMax(1_000_000, { log, run, procDir });
    expect(run).toHaveBeenCalledTimes(wantCalls);
    const args = ["--pid", String(process.pid), "--nofile=1000000:1000000"];
    if (wantCalls > 0) expect(run).toHaveBeenCalledWith("prlimit", args, expect.anything());
    expect(lines).toEqual(wantLog === undefined ? [] : [expect.stringMatching(wantLog)]);
  });
}

test("the OOM score is written as it is", async () => {
  await writeFile(join(procDir, "oom_score_adj"), "0\n");
  await setOOMScore(-999, { log, procDir });
  expect(await readFile(join(procDir, "oom_score_adj"), "utf8")).toBe("-999");
  expect(lines).toEqual([]);
});

test("an OOM score that may not be set is told once, and nothing else happens", async () => {
  await setOOMScore(-999, { log, procDir: join(procDir, "nobody") });
  expect(lines).toHaveLength(1);
  expect(lines[0]).toMatch(/"oomScoreAdj":-999.*cannot set the agent's own OOM score/);
});
