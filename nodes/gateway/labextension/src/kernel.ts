/**
 * What a Callboard kernel is asked beyond Jupyter's own messages. The gateway answers it, so that
 * neither question waits for a cell that runs.
 */
import { PageConfig } from '@jupyterlab/coreutils';
import { Kernel, KernelMessage } from '@jupyterlab/services';

const STATUS_REQUEST = 'callboard_status_request';
const OUTPUTS_REQUEST = 'callboard_outputs_request';

/** How long a kernel may take to say how it is; longer than it takes to replace a lost executor. */
const STATUS_PATIENCE_MS = 8_000;

/** One replica of a kernel. */
export interface IReplica {
  replica: string;
  node: string;
  role: 'executor' | 'standby' | 'learner' | 'unreachable';
}

/** How a kernel is. */
export interface IStatus {
  status: 'ok';
  kernel: string;
  phase: 'starting' | 'running' | 'idle' | 'parked' | 'hibernating';
  /** How many more nodes may be lost at once without losing anything. */
  losses_survivable: number;
  /** Whether that includes variables, or cells and outputs only; older gateways say nothing. */
  state_replicated?: boolean;
  replicas: IReplica[];
  /** The node that runs cells, if one does at present. */
  executor: string | null;
  gpus: { held: (string | number)[]; waiting: number | null };
  last_failover: {
    at_ms?: number | null;
    from?: string | null;
    to?: string | null;
    cause: string;
  } | null;
}

/** What became of a cell whose outputs were asked for. */
export interface IOutputsReply {
  status: 'ok' | 'error';
  cell: 'ended' | 'interrupted' | 'unknown';
  execution_count: number | null;
}

/** Whether the kernel is Callboard's: it says so when it introduces itself. */
export async function isCallboard(
  kernel: Kernel.IKernelConnection
): Promise<boolean> {
  try {
    const { callboard } = (await kernel.info) as { callboard?: unknown };
    return typeof callboard === 'object' && callboard !== null;
  } catch {
    return false; // it was gone before it could say anything
  }
}

/** Lets Lab show a kernel as idle or busy for what it runs, not for being asked how it is. */
export function keepQuestionsOutOfSight(): void {
  const option = 'untracked_message_types';
  const types = JSON.parse(PageConfig.getOption(option) || '[]');
  PageConfig.setOption(option, JSON.stringify([...types, STATUS_REQUEST]));
}

/** Asks a Callboard kernel how it is; null if it does not say. */
export async function requestStatus(
  kernel: Kernel.IKernelConnection
): Promise<IStatus | null> {
  const future = send(kernel, STATUS_REQUEST, {});
  try {
    return await new Promise<IStatus | null>(resolve => {
      setTimeout(() => resolve(null), STATUS_PATIENCE_MS);
      future.done.catch(() => resolve(null));
      future.onReply = reply => {
        const content = reply.content as unknown as IStatus;
        resolve(content.status === 'ok' ? content : null);
      };
    });
  } finally {
    future.dispose();
  }
}

/**
 * Asks a Callboard kernel for the outputs of a cell, from the first one on and as long as it runs.
 * They arrive as if this request had made them; the reply is an `IOutputsReply`.
 */
export function requestOutputs(
  kernel: Kernel.IKernelConnection,
  msgId: string
): Kernel.IShellFuture<
  KernelMessage.IExecuteRequestMsg,
  KernelMessage.IExecuteReplyMsg
> {
  return send(kernel, OUTPUTS_REQUEST, { msg_id: msgId });
}

/** Sends a message that Jupyter has no type for, in the place of one that is answered alike. */
function send(
  kernel: Kernel.IKernelConnection,
  msgType: string,
  content: Record<string, unknown>
) {
  const message = KernelMessage.createMessage<KernelMessage.IExecuteRequestMsg>({
    channel: 'shell',
    msgType: msgType as 'execute_request',
    session: kernel.clientId,
    username: kernel.username,
    content: content as unknown as KernelMessage.IExecuteRequestMsg['content']
  });
  return kernel.sendShellMessage(message, true) as Kernel.IShellFuture<
    KernelMessage.IExecuteRequestMsg,
    KernelMessage.IExecuteReplyMsg
  >;
}
