/**
 * Everything that can be tested on one machine, in the order of what it costs: check and build, unit, integration, e2e, and
 * of e2e once more with Docker what a runtime has most to do with.
 * All of it runs even if some fails. The last line counts tests; a failed step without tests counts as one.
 */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { capture, type Ended, show } from "./command.ts";
import { addCounts, type Counts, countsOfReport, failuresOfReport, summaryLine } from "./counts.ts";

// At most four minutes on a quiet machine with two cores; all of it: npm run test:e2e -- --runtime docker.
const withDocker = [
  ...["pod-lifecycle", "pod-content", "probes", "api-exec", "api-logs", "api-port-forward", "services", "static-pods"],
  ...["fault-agent", "fault-runtime"],
];

const node = process.execPath;
const isRoot = process.getuid?.() === 0;
const dir = await mkdtemp(join(tmpdir(), "nodelet-test-"));
const summary: string[] = [];
const failures: string[] = [];
let total: Counts = { passed: 0, failed: 0, skipped: 0 };

try {
  const [check, build] = await Promise.all([capture(node, [".ci/check.ts"]), capture(node, [".ci/build.ts"])]);
  step("check", check);
  step("build", build);
  await suite("unit");
  if (isRoot) {
    await suite("integration");
    await suite("e2e", { TEST_RUNTIME: "containerd" });
    const files = withDocker.map((name) => `test/e2e/${name}.test.ts`);
    await suite("e2e", { TEST_RUNTIME: "docker" }, { name: "e2e with Docker", files });
  } else {
    const why = "needs root (network namespaces, mounts, containerd): run npm test as root";
    for (const name of ["integration", "e2e", "e2e with Docker"]) fail(name, why);
  }
} finally {
  await rm(dir, { recursive: true, force: true });
}

for (const failure of failures) console.log(`\nFAILED ${failure}`);
console.log(`\n${summary.join("\n")}\n${summaryLine(total)}`);
process.exitCode = total.failed === 0 ? 0 : 1;

function step(name: string, { code, output, seconds }: Ended): void {
  console.log(output.trimEnd());
  if (code === 0) summary.push(`ok     ${name}, ${seconds.toFixed(0)} s`);
  else fail(name, `exited with ${code} after ${seconds.toFixed(0)} s`);
}

/** Runs one of vitest's projects, or these files of it, and adds what its report says. */
async function suite(
  project: string,
  env: Record<string, string> = {},
  { name = project, files = [] }: { name?: string; files?: readonly string[] } = {},
): Promise<void> {
  console.log(`\n== ${name}`);
  const report = join(dir, `${name.replaceAll(" ", "-")}.json`);
  const suiteArgs = ["run", "--config", "test/vitest.config.ts", "--project", project, ...files];
  const reporters = ["--reporter=default", "--reporter=json", `--outputFile.json=${report}`];
  const { code, seconds } = await show(node, ["node_modules/vitest/vitest.mjs", ...suiteArgs, ...reporters], env);
  const text = await readFile(report, "utf8").catch(() => undefined);
  const counts = countsOfReport(text, code);
  failures.push(...failuresOfReport(text).map((failure) => (name === project ? failure : `${name}: ${failure}`)));
  total = addCounts(total, counts);
  summary.push(`${counts.failed === 0 ? "ok    " : "FAILED"} ${name}: ${summaryLine(counts)}, ${seconds.toFixed(0)} s`);
}

function fail(name: string, why: string): void {
  total = addCounts(total, { passed: 0, failed: 1, skipped: 0 });
  summary.push(`FAILED ${name}: ${why}`);
}
