import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import { annotations } from "../../../agent/pods/container-annotations.ts";
import { readTerminationMessage } from "../../../agent/pods/container-logs.ts";
import { exited } from "./support.ts";

async function read(hostPath: string, asWritten = "/dev/termination-log"): Promise<string> {
  const containerPath = "/dev/termination-log";
  const mount = { containerPath, hostPath, readonly: false, selinuxRelabel: false, propagation: "PRIVATE" as const };
  const status = exited({ mounts: [{ ...mount, recursiveReadOnly: false }] });
  status.annotations = { ...status.annotations, [annotations.terminationMessagePath]: asWritten };
  return await readTerminationMessage(status);
}

test("a termination log is read; one that is no file, as a fifo of the pod's own making, holds up nobody", async () => {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-last-words-"));
  try {
    const [file, fifo] = [join(dir, "file"), join(dir, "fifo")];
    await writeFile(file, "bye");
    await exec("mkfifo", [fifo], { timeoutMs: 5_000 });
    expect(await read(file)).toBe("bye");
    expect(await read(file, "dev/termination-log")).toBe("bye");
    expect(await read(file, "/dev/other")).toBe("");
    expect(await read(file, "")).toBe("");
    expect(await read(fifo)).toBe("");
    expect(await read(dir)).toBe("");
    expect(await read(join(dir, "gone"))).toBe("");
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
});
