import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { isReady, openNamespace, type TestNamespace } from "./support/cluster.ts";
import { type Kubectl, openKubectl, protocols } from "./support/kubectl.ts";
import { podOf, shell, sleeperOf } from "./support/pods.ts";

const MiB = 1 << 20;
let cluster: TestNamespace;
let kubectl: Kubectl;
let dir: string;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  kubectl = openKubectl(inject("kubeconfig"), cluster.namespace);
  dir = await mkdtemp(join(tmpdir(), "nodelet-e2e-"));
  await cluster.createPod(sleeperOf("worker"));
  const echoes = shell("main", "echo hello; while read -r line; do echo got $line; done; echo eof; sleep 1000", {
    stdin: true,
  });
  await cluster.createPod(podOf("reader", [echoes]));
  const two = [shell("one", "touch /tmp/one; sleep 1000"), shell("two", "touch /tmp/two; sleep 1000")];
  await cluster.createPod(podOf("two", two));
  for (const name of ["worker", "reader", "two"]) await cluster.waitForPod(name, "ready", isReady);
});
afterAll(async () => {
  await cluster[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

describe.each(protocols)("over $protocol, kubectl exec", ({ env }) => {
  const exec = async (script: string, options: { stdin?: Uint8Array | string } = {}) => {
    const flags = options.stdin === undefined ? [] : ["-i"];
    return await kubectl.run(["exec", ...flags, "worker", "--", "sh", "-c", script], { ...options, env });
  };

  test("passes on both outputs and the exit code", async () => {
    const { code, stdout, stderr } = await exec("echo out; echo err >&2; exit 7");
    expect(stdout).toBe("out\n");
    expect(stderr).toBe("err\ncommand terminated with exit code 7\n");
    expect(code).toBe(7);
    expect(await exec("exit 0")).toMatchObject({ code: 0, stdout: "", stderr: "" });
    expect((await exec("kill -9 $$")).code).toBe(137);
  });

  test("passes arguments as they are", async () => {
    const words = ["two words", "", "a=b&c", "ü%20?#", "--flag", "line\nbreak"];
    const { stdout } = await kubectl.run(["exec", "worker", "--", "printf", "<%s>", ...words], { env });
    expect(stdout).toBe(words.map((word) => `<${word}>`).join(""));
  });

  test("closes the process's input at the end of ours, and passes on what it says then", async () => {
    expect(await exec("cat; echo done", { stdin: "first\nsecond\n" })).toMatchObject({
      code: 0,
      stdout: "first\nsecond\ndone\n",
    });
    expect(await exec("wc -c", { stdin: "" })).toMatchObject({ stdout: "0\n" });
  });

  test("carries megabytes both ways unchanged", async () => {
    const bytes = randomBytes(24 * MiB);
    const { code, stdoutBytes, stdoutSHA256 } = await exec("cat", { stdin: bytes });
    expect(code).toBe(0);
    expect(stdoutBytes).toBe(bytes.length);
    expect(stdoutSHA256).toBe(createHash("sha256").update(bytes).digest("hex"));
  });

  test("loses nothing of a large output that ends at once", async () => {
    for (const size of [1, 4_095, 65_537, 40 * MiB]) {
      const { code, stdoutBytes } = await exec(`head -c ${size} /dev/zero`);
      expect({ code, stdoutBytes }).toEqual({ code: 0, stdoutBytes: size });
    }
  });

  test("says what is wrong when the command cannot be run", async () => {
    const { code, stderr } = await kubectl.run(["exec", "worker", "--", "/no/such/program"], { env });
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/no\/such\/program.*no such file/);
  });

  test("goes to the container that was named", async () => {
    for (const name of ["one", "two"]) {
      expect(await kubectl.demand(["exec", "two", "-c", name, "--", "ls", "/tmp"], { env })).toBe(`${name}\n`);
    }
    const { code, stderr } = await kubectl.run(["exec", "two", "-c", "three", "--", "true"], { env });
    expect(code).toBe(1);
    expect(stderr).toContain("container three is not valid for pod two");
  });

  test("works twenty times at once", async () => {
    const runs = Array.from({ length: 20 }, (_, i) => exec(`cat; echo ${i}; exit ${i}`, { stdin: `input ${i}\n` }));
    const results = await Promise.all(runs);
    expect(results.map(({ code }) => code)).toEqual(results.map((_, i) => i));
    expect(results.map(({ stdout }) => stdout)).toEqual(results.map((_, i) => `input ${i}\n${i}\n`));
  });

  test("attach shows what comes, and writes to the container", async () => {
    const attached = kubectl.start(["attach", "-i", "reader", "-c", "main"], { staysOpen: true, env });
    // What is written before the streams are there waits for them.
    attached.write("one\n");
    await attached.said("got one");
    attached.write("two\n");
    await attached.said("got two");
    expect(attached.stdout()).not.toContain("hello");
    attached.kill("SIGKILL");
    await attached.ended;
  });
});

test("a terminal: it has our size, and Ctrl-C reaches the program in it", async () => {
  const size = { columns: 123, rows: 45 };
  const terminal = kubectl.startWithTerminal(["exec", "-it", "worker", "--", "sh"], size);
  try {
    // The size has a way of its own, on which what is typed may overtake it. The echo of this says "siz""ed".
    terminal.write(`until [ "$(stty size 2>&1)" = "$((40 + 5)) 123" ]; do sleep 0.1; done; echo siz""ed\n`);
    await terminal.said("sized");
    terminal.write("test -t 0 && test -t 1 && test -t 2 && echo all of $((3 * 5 * 7)) are terminals\n");
    await terminal.said("all of 105 are terminals");
    // What it says shows that it is the program that Ctrl-C reaches, and not the shell before it.
    terminal.write(`sh -c 'echo be""gun; while read -r line; do echo "got-$line"; done'\n`);
    await terminal.said("begun");
    terminal.write("ping\n");
    await terminal.said("got-ping");
    terminal.write("\u0003");
    await terminal.said(/\^C[^]*# /); // a shell forgets what was typed before its prompt
    terminal.write("echo awake $((40 + 2)); exit 5\n");
    await terminal.said("awake 42");
    expect((await terminal.ended).code).toBe(5);
  } finally {
    terminal.kill("SIGKILL");
    await terminal.ended;
  }
});

test("kubectl run -i: a container that reads what we write, from its first byte to its end", async () => {
  const image = (await cluster.getPod("worker")).spec.containers[0]?.image ?? "";
  const script = "wc -c; echo that was it";
  const args = ["run", "piped", "-i", "--quiet", "--restart=Never", `--image=${image}`, "--", "sh", "-c", script];
  const { stdout } = await kubectl.run(args, { stdin: randomBytes(MiB) });
  expect(stdout).toContain("that was it");
  const pod = await cluster.waitForPod("piped", "finished", ({ status }) => status?.phase === "Succeeded");
  expect(pod.status?.phase).toBe("Succeeded");
});

test("kubectl cp carries 100 MiB both ways", async () => {
  const size = 100 * MiB;
  const local = join(dir, "local");
  const file = await open(local, "w");
  for (let written = 0; written < size; written += MiB) await file.write(randomBytes(MiB));
  await file.close();
  await kubectl.demand(["cp", local, "worker:/tmp/remote"]);
  const sum = (await kubectl.demand(["exec", "worker", "--", "sha256sum", "/tmp/remote"])).split(" ")[0];
  expect(sum).toBe(await sha256(local));
  const back = join(dir, "back");
  await kubectl.demand(["cp", "worker:/tmp/remote", back]);
  expect(await sha256(back)).toBe(sum);
  await kubectl.demand(["exec", "worker", "--", "rm", "/tmp/remote"]);
});

async function sha256(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest("hex");
}
