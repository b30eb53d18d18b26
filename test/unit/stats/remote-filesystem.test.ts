import { expect, test } from "vitest";
import { createRemoteFilesystems, hangingMax, statfsTimeoutMs } from "../../../agent/stats/remote-filesystem.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const figures = { capacityBytes: 1, availableBytes: 1, usedBytes: 0, inodes: 1, inodesFree: 1 };
const never = new AbortController().signal;

test("an answer is given on, and no timer stays", async () => {
  const clock = new FakeClock();
  expect(await createRemoteFilesystems(clock, async () => figures).ask("/mnt", never)).toEqual(figures);
  expect(clock.waiting).toBe(0);
});

test("a server that is away holds one thread, however often it is asked", async () => {
  const clock = new FakeClock();
  let asked = 0;
  const answer = Promise.withResolvers<typeof figures>();
  const remote = createRemoteFilesystems(clock, async () => {
    asked += 1;
    return await answer.promise;
  });
  const first = expect(remote.ask("/mnt", never)).rejects.toThrow("/mnt did not answer within 5000 ms");
  await clock.advance(statfsTimeoutMs);
  await first;
  await expect(remote.ask("/mnt", never)).rejects.toThrow("its server may be away");
  expect(asked).toBe(1);
  answer.resolve(figures);
  await clock.advance(0);
  expect(await remote.ask("/mnt", never)).toEqual(figures);
});

test("servers that are away hold few threads altogether, and give them back", async () => {
  const clock = new FakeClock();
  const answer = Promise.withResolvers<typeof figures>();
  let asked = 0;
  const remote = createRemoteFilesystems(clock, async (directory) => {
    asked += 1;
    return directory === "/local" ? figures : await answer.promise;
  });
  for (let i = 0; i < hangingMax; i += 1) {
    const hangs = expect(remote.ask(`/mnt/${i}`, never)).rejects.toThrow("did not answer");
    await clock.advance(statfsTimeoutMs);
    await hangs;
  }
  await expect(remote.ask("/mnt/more", never)).rejects.toThrow("/mnt/more is not asked: 4 other filesystems");
  expect(asked).toBe(hangingMax);
  answer.resolve(figures);
  await clock.advance(0);
  expect(await remote.ask("/local", never)).toEqual(figures);
  expect(clock.waiting).toBe(0);
});

test("the agent's end does not wait for it", async () => {
  const stop = new AbortController();
  const hangs = createRemoteFilesystems(new FakeClock(), () => new Promise(() => {}));
  const asked = hangs.ask("/mnt", stop.signal);
  stop.abort(new Error("the agent stops"));
  await expect(asked).rejects.toThrow("the agent stops");
});
