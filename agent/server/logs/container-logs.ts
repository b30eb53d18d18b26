import type { Pod } from "../../kube/types.ts";
import type { Clock } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { specContainers } from "../../pods/names.ts";
import type { Runtime } from "../../runtime/port.ts";
import { type Handler, HttpError, type ServedPods } from "../port.ts";
import { createBodyWriter } from "./body.ts";
import { selectInstance } from "./instance.ts";
import { ContainerLiveness } from "./liveness.ts";
import { parseLogOptions } from "./options.ts";
import { readLog } from "./reader.ts";

export interface ContainerLogsDeps {
  readonly pods: ServedPods;
  readonly runtime: Pick<Runtime, "containerStatus">;
  readonly clock: Clock;
  readonly log: Logger;
  /** Feature gate PodLogsQuerySplitStreams. */
  readonly splitStreams: boolean;
}

/**
 * `GET /containerLogs/{namespace}/{pod}/{container}`: the log of one container instance.
 *
 * Headers go out before the first byte of the log, so that a client knows that it follows a container that says nothing.
 * What fails from then on stands in the body, where kubectl prints it.
 */
export function createContainerLogsHandler(deps: ContainerLogsDeps): Handler {
  const { pods, runtime, clock, splitStreams } = deps;
  const liveness = new ContainerLiveness(runtime, clock);

  return async ({ params, query, response, signal }) => {
    const { namespace = "", pod: podName = "", container = "" } = params;
    const options = parseLogOptions(query, splitStreams, clock.now());
    const pod = findPod(pods, namespace, podName, container);
    const instance = selectInstance(podName, pods.status(pod), container, options.previous);
    const containerID = instance.replace(/^[^/]*:\/\//, ""); // `<runtime>://<id>`
    const log = deps.log.child({ pod: `${namespace}/${podName}`, container, containerID });

    response.writeHead(200, { "Content-Type": "text/plain" });
    response.flushHeaders();
    const path = await runtime.containerStatus(containerID).then(
      ({ logPath }) => logPath,
      (err: unknown) => {
        log.debug({ err: messageOf(err) }, "status of a container whose log is wanted not read");
        return undefined;
      },
    );
    if (path === undefined) {
      response.end(`unable to retrieve container logs for ${instance}`);
      return;
    }
    const write = createBodyWriter(response, signal);
    const isRunning = async () => await liveness.isRunning(containerID);
    try {
      await readLog(path, options, { clock, log, isRunning, write }, signal);
      response.end();
    } catch (err) {
      log.debug({ path, err: messageOf(err) }, "log not read to its end");
      response.end(`failed to read log file "${path}": ${messageOf(err)}`);
    }
  };
}

function findPod(pods: ServedPods, namespace: string, name: string, container: string): Pod {
  const pod = pods.find(namespace, name);
  if (pod === undefined) throw new HttpError(404, `pod "${name}" does not exist`);
  if (!specContainers(pod).some((one) => one.container.name === container)) {
    throw new HttpError(404, `container "${container}" not found in pod "${name}"`);
  }
  return pod;
}
