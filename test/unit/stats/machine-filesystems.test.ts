import { expect, test } from "vitest";
import { readMachineFilesystems } from "../../../agent/stats/machine-filesystems.ts";
import type { FileReader } from "../../../agent/stats/read.ts";
import { createRemoteFilesystems, statfsTimeoutMs } from "../../../agent/stats/remote-filesystem.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const figures = { capacityBytes: 10, availableBytes: 5, usedBytes: 5, inodes: 1, inodesFree: 1 };
const texts: Record<string, string> = {
  "/proc/self/mountinfo":
    "22 1 254:0 / / rw - ext4 /dev/vda rw\n23 1 254:16 / /failed rw - ext4 /dev/vdb rw\n" +
    "24 1 0:52 / /mnt/sshfs rw - fuse /dev/fuse rw\n",
  "/proc/diskstats": "254 0 vda 1 0 8 1 2 0 16 1 0 1 2\n",
};
const reader: FileReader = { text: async (path) => texts[path], list: async (path) => texts[path] };

test("a disk that does not answer is left out, and the next scrape does not wait for it", async () => {
  const clock = new FakeClock();
  const asked: string[] = [];
  const filesystems = createRemoteFilesystems(clock, async (directory) => {
    asked.push(directory);
    return directory === "/failed" ? await new Promise<never>(() => {}) : figures;
  });
  const first = readMachineFilesystems(reader, filesystems);
  await expect.poll(() => asked.length, { interval: 1 }).toBe(2);
  await clock.advance(statfsTimeoutMs);
  const shown = [{ device: "/dev/vda", figures, disk: expect.objectContaining({ reads: 1, writes: 2 }) as object }];
  expect(await first).toEqual(shown);
  expect(await readMachineFilesystems(reader, filesystems)).toEqual(shown);
  expect(asked).toEqual(["/", "/failed", "/"]);
});
