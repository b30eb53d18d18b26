import { expect, test } from "vitest";
import { createNamed } from "../../../../agent/runtime/docker/create.ts";
import type { CreateBody } from "../../../../agent/runtime/docker/create-body.ts";
import { sandboxLabels } from "../../../../agent/runtime/docker/labels.ts";
import { sandboxName } from "../../../../agent/runtime/docker/names.ts";
import { sandbox } from "./config-support.ts";
import { answered, fakeDocker, sendJSON } from "./fake-docker.ts";

const config = sandbox();
const name = sandboxName(config);
const Labels = sandboxLabels(config, "", "node-1");
const ended = { Running: false, ExitCode: 0, FinishedAt: "2026-01-01T00:00:02Z" };

/** A daemon where `leftover` has the name. @returns the names asked for, and what was removed */
async function create(leftover: object) {
  const asked: string[] = [];
  let isTaken = true;
  await using fake = await fakeDocker(({ method, path, query }, response) => {
    if (path === "/containers/create") {
      asked.push(query.get("name") ?? "");
      if (!isTaken || asked.at(-1) !== name) return { Id: "new" };
      sendJSON(response, 409, { message: `Conflict. The container name "/${name}" is already in use` });
      return answered;
    }
    if (method === "DELETE") isTaken = false;
    return method === "DELETE" ? {} : { Id: "old", Name: `/${name}`, ...leftover };
  });
  expect(await createNamed(fake.client, "create sandbox", { name, Labels } as CreateBody)).toBe("new");
  const removed = fake.requests.filter((request) => request.startsWith("DELETE"));
  return { last: asked.at(-1), removed };
}

test("a container gets the name of a dead leftover of this node's pods", async () => {
  expect(await create({ State: ended, Config: { Labels } })).toEqual({
    last: name,
    removed: ["DELETE /containers/old"],
  });
});

test.each([
  ["runs", { State: { Running: true, Pid: 1 }, Config: { Labels } }],
  ["is another node's, dead as it is", { State: ended, Config: { Labels: sandboxLabels(config, "", "node-2") } }],
  ["is no pod's, dead as it is", { State: ended, Config: { Labels: {} } }],
])("and a name of its own beside what %s", async (_what, leftover) => {
  const { last, removed } = await create(leftover);
  expect(last).toMatch(new RegExp(`^${name}_[0-9a-f]{8}$`));
  expect(removed).toEqual([]);
});
