import { AgentError, hasCode, ifThere } from "../../lib/errors.ts";
import type { DockerCallOptions, DockerClient } from "./client.ts";
import type { CreateBody } from "./create-body.ts";
import { alreadyIsFine } from "./errors.ts";
import { isRunning } from "./inspect.ts";
import { nodeOf } from "./labels.ts";
import { withRandomSuffix } from "./names.ts";
import { kindOfInspected } from "./ownership.ts";
import type { WireInspect } from "./wire.ts";

/**
 * Creates a container under its name. A dead leftover of a pod that has the name is removed first; where the name stays
 * taken, by what runs or is not a pod's or cannot be removed, the container gets a random suffix.
 *
 * @param what "create container app of ns/web", for messages
 * @returns the ID
 */
export async function createNamed(client: DockerClient, what: string, body: CreateBody): Promise<string> {
  try {
    return await create(client, what, body);
  } catch (err) {
    if (!hasCode(err, "AlreadyExists")) throw err;
  }
  if (await removeLeftover(client, body.name, nodeOf(body.Labels ?? {}) ?? "")) {
    try {
      return await create(client, what, body);
    } catch (err) {
      if (!hasCode(err, "AlreadyExists")) throw err;
    }
  }
  return await create(client, what, { ...body, name: withRandomSuffix(body.name) });
}

/** Rejects with NotFound. @param name an ID or a name */
export async function inspectContainer(
  client: DockerClient,
  what: string,
  name: string,
  options: DockerCallOptions = {},
): Promise<WireInspect> {
  const inspect: unknown = await client.call(
    what,
    async (abortSignal) => await client.docker.getContainer(name).inspect({ abortSignal }),
    options,
  );
  if (typeof inspect !== "object" || inspect === null || !("Id" in inspect)) {
    throw new AgentError("Internal", `${what}: the Docker daemon answered something else`);
  }
  return inspect as WireInspect;
}

/** Removes a container, running or not, with its anonymous volumes. What is not there is removed. */
export async function removeForced(client: DockerClient, what: string, id: string): Promise<void> {
  await alreadyIsFine(
    client.call(what, async (abortSignal) => {
      await client.docker.getContainer(id).remove({ force: true, v: true, abortSignal });
    }),
  ).catch((err: unknown) => {
    // Somebody else is at it; what comes after meets the object gone, or says so itself.
    if (!hasCode(err, "Conflict")) throw err;
  });
}

async function create(client: DockerClient, what: string, body: CreateBody): Promise<string> {
  const { name, ...description } = body;
  // Told apart, since dockerode puts the whole description into the query as well: environment, secrets and all.
  const request = { _query: { name }, _body: description };
  const container = await client.call(
    what,
    async (abortSignal) => await client.docker.createContainer({ ...request, abortSignal }),
  );
  return container.id;
}

/** True if nothing has the name any more. Never rejects but with what the daemon cannot do at all. */
async function removeLeftover(client: DockerClient, name: string, nodeName: string): Promise<boolean> {
  const leftover = await ifThere(inspectContainer(client, `look at container ${name}`, name));
  if (leftover === undefined) return true;
  if (kindOfInspected(leftover, nodeName) === undefined || isRunning(leftover.State)) return false;
  try {
    await removeForced(client, `remove container ${name}`, leftover.Id);
    return true;
  } catch (err) {
    if (hasCode(err, "Internal", "Conflict")) return false;
    throw err;
  }
}
