import { expect, test } from "vitest";
import { bannedCalls, layering, leftovers, length, libraries, linesMax, type Rule, textOnly } from "./rules.ts";

// Parts of words that may not stand in a file: this one passes the rules it tests.
const half = "TO";
const o = "o";
const cases: { name: string; rule: Rule; path: string; text: string; want: RegExp | undefined }[] = [
  {
    name: "pods may use the runtime",
    rule: layering,
    path: "agent/pods/worker.ts",
    text: `import type { Runtime } from "../runtime/port.ts";\n`,
    want: undefined,
  },
  {
    name: "the runtime does not know pods",
    rule: layering,
    path: "agent/runtime/cri/connect.ts",
    text: `import {\n  decide,\n} from "../../pods/decide.ts";\n`,
    want: /pods lies above runtime/,
  },
  {
    name: "lib knows nothing of Kubernetes, not even lazily",
    rule: layering,
    path: "agent/lib/clock.ts",
    text: `const types = await import("../kube/types.ts");\n`,
    want: /kube lies above lib/,
  },
  {
    name: "pods and proxy are strangers, also by type",
    rule: layering,
    path: "agent/pods/worker.ts",
    text: `import type { Model } from "../proxy/model.ts";\n`,
    want: /do not know each other/,
  },
  {
    name: "the daemon does not import its tests",
    rule: layering,
    path: "agent/lib/clock.ts",
    text: `import { FakeClock } from "../../test/support/fake-clock.ts";\n`,
    want: /does not know its tests/,
  },
  {
    name: "an import in a comment is none",
    rule: layering,
    path: "agent/lib/clock.ts",
    text: `// import { x } from "../pods/x.ts";\n/* import { x } from "../pods/x.ts"; */\n`,
    want: undefined,
  },
  {
    name: "gRPC stays in its place",
    rule: libraries,
    path: "agent/pods/worker.ts",
    text: `import type { ServiceError } from "@grpc/grpc-js";\n`,
    want: /only agent\/lib\/grpc\/ may/,
  },
  {
    name: "gRPC is not loaded at start",
    rule: libraries,
    path: "agent/lib/grpc/channel.ts",
    text: `import { Client } from "@grpc/grpc-js";\n`,
    want: /use await import/,
  },
  {
    name: "gRPC's types and a lazy import are fine",
    rule: libraries,
    path: "agent/lib/grpc/channel.ts",
    text: `import type { Client } from "@grpc/grpc-js";\nconst grpc = await import("@grpc/grpc-js");\n`,
    want: undefined,
  },
  {
    name: "cni runs in the daemon too",
    rule: bannedCalls,
    path: "cni/plugins.ts",
    text: `import { spawn } from "node:child_process";\n`,
    want: /use exec\(\) of lib\/exec.ts/,
  },
  {
    name: "processes are started in one place",
    rule: bannedCalls,
    path: "agent/proxy/sync.ts",
    text: `import { execSync } from "node:child_process";\n`,
    want: /line 1 starts processes itself/,
  },
  {
    name: "the runtime's execSync is no child process",
    rule: bannedCalls,
    path: "agent/probes/exec.ts",
    text: `await runtime.execSync(containerID, command, 1);\n`,
    want: undefined,
  },
  {
    name: "no shell",
    rule: bannedCalls,
    path: "agent/lib/exec.ts",
    text: `spawn(file, args, { shell: true });\n`,
    want: /argument array/,
  },
  {
    name: "no synchronous files",
    rule: bannedCalls,
    path: "agent/volumes/secret.ts",
    text: `\nconst text = readFileSync(path, "utf8");\n`,
    want: /line 2 does file I\/O/,
  },
  {
    name: "time comes from the clock",
    rule: bannedCalls,
    path: "agent/kube/watch.ts",
    text: `setTimeout(retry, 1000);\n`,
    want: /use the Clock/,
  },
  {
    name: "a method called setTimeout is another thing",
    rule: bannedCalls,
    path: "agent/kube/watch.ts",
    text: `socket.setTimeout(1000);\nstream.setTimeout(1000);\n`,
    want: undefined,
  },
  {
    name: "the clock may",
    rule: bannedCalls,
    path: "agent/lib/clock.ts",
    text: `const handle = setTimeout(fn, ms);\n`,
    want: undefined,
  },
  {
    name: "the environment is configuration",
    rule: bannedCalls,
    path: "agent/pods/env.ts",
    text: `const path = process.env["PATH"];\n`,
    want: /agent\/config does that/,
  },
  { name: "no notes", rule: leftovers, path: "README.md", text: `${half}DO: write this\n`, want: /note to finish/ },
  {
    name: "no focused tests",
    rule: leftovers,
    path: "test/unit/a.test.ts",
    text: `test.${o}nly("x", () => {});\n`,
    want: /only part of the tests/,
  },
  {
    name: "a condition is no skipped test",
    rule: leftovers,
    path: "test/unit/a.test.ts",
    text: `test.skipIf(process.getuid?.() !== 0)("x", () => {});\n`,
    want: undefined,
  },
  {
    name: "no paths of one machine",
    rule: leftovers,
    path: "a.ts",
    text: `"/w${o}rk/main/x"\n`,
    want: /one machine/,
  },
  {
    name: "long files are split",
    rule: length,
    path: "agent/kube/types.ts",
    text: "\n".repeat(linesMax + 1),
    want: /split it/,
  },
  { name: "the longest file is fine", rule: length, path: "agent/a.ts", text: "\n".repeat(linesMax), want: undefined },
  { name: "binaries are built", rule: textOnly, path: "test/pause", text: "\x7fELF\0", want: /build it/ },
];

for (const { name, rule, path, text, want } of cases) {
  test(name, () => {
    const problems = rule({ path, text });
    if (want === undefined) expect(problems).toEqual([]);
    else expect(problems.join("\n")).toMatch(want);
  });
}
