"""The fast path of training on TensorFlow: fused kernels and optional bfloat16 arithmetic, invisible outside."""

import contextlib
import functools
import math

import keras

from tfcompress.graph import copy_model, copy_operation, is_nested_model, producer

_DEPTHWISE = (keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)


@contextlib.contextmanager
def training_clone(model, precision="float32"):
    """Gives the model to train in place of `model`, and copies the weights back when the block ends.

    After an exception, `model` has the weights that it had before, so that the same training can be tried again.

    For tf_keras models, and in float32 for models that Keras cannot clone, that is `model` itself. Else it is a clone,
    so that `model` stays compiled as it was: Keras could not load its file if it were saved with the optimizer of
    `fit`. On TensorFlow the clone's BatchNormalization layers call the fused kernel (Keras 3 composes it of single
    operations) or our own, where that one is slow. Its arithmetic is of the given precision; layers that produce an
    output stay in float32. In bfloat16 on a CPU, convolutions whose kernels are slow become matrix products; in a
    network with depthwise convolutions nothing else leaves float32, since their kernels, and ReLU6's, are up to 40
    times slower.

    Args:
        model: a built Keras 3 or tf_keras model.
        precision: "float32" or "mixed_bfloat16".
    """
    if not isinstance(model, keras.Model):
        if precision != "float32":
            raise ValueError(f"tf_keras models train in float32. Received: precision={precision!r}")
        with _restored_on_error(model):
            yield model
        return
    fused = keras.backend.backend() == "tensorflow"
    outputs = _output_layers(model)
    cpu = fused and not _has_gpu()
    depthwise = cpu and any(isinstance(layer, _DEPTHWISE) for layer in model._flatten_layers())

    def fast_layer(layer):
        if not isinstance(layer, keras.Layer):
            return layer
        changes, cls = {}, type(layer)
        if fused and _is_fusible(layer):
            cls = _fused_batch_normalization()
        if precision != "float32" and id(layer) not in outputs:
            product = cpu and _can_be_a_product(layer)
            if not depthwise or (product and layer.kernel_size == (1, 1)):
                changes["dtype"] = precision
                cls = _ProductConv2D if product else cls
        return copy_operation(layer, cls, **changes)

    try:
        clone = copy_model(model, clone_function=fast_layer, recursive=True)
    except (TypeError, ValueError, NotImplementedError):
        # Layers, activations or constraints of the user's own that no config describes.
        if precision != "float32":
            raise
        clone = None
    if clone is None:
        with _restored_on_error(model):
            yield model
        return
    yield clone
    model.set_weights(clone.get_weights())


@contextlib.contextmanager
def _restored_on_error(model):
    weights = model.get_weights()
    try:
        yield
    except BaseException:  # an interruption by the user, too
        model.set_weights(weights)
        raise


def _output_layers(model):
    """The ids of the layers that produce a model's outputs, of a model in it those that produce its outputs."""
    found = set()
    for tensor in model.outputs:
        operation, _ = producer(tensor)
        found |= _output_layers(operation) if is_nested_model(operation) else {id(operation)}
    return found


def _is_fusible(layer):
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.built
        and layer.variable_dtype == "float32"
        and layer.input_spec.ndim == 4
        and layer.axis in (-1, 3)
        and not layer.renorm
        and not layer.synchronized
    )


def _can_be_a_product(layer):
    return (
        type(layer) is keras.layers.Conv2D
        and layer.strides == layer.dilation_rate == (1, 1)
        and layer.groups == 1
        and layer.data_format == "channels_last"
        and (layer.kernel_size == (1, 1) or (layer.padding == "same" and all(n % 2 for n in layer.kernel_size)))
    )


class _ProductConv2D(keras.layers.Conv2D):
    """A convolution that is a matrix product where that is faster in bfloat16 on a CPU.

    Up to 10 times with 1x1 kernels, and 5 times on images of up to 4x4 pixels.
    """

    def call(self, inputs):
        height, width = inputs.shape[1:3]
        if self.kernel_size != (1, 1) and (None in (height, width) or height * width > 16):
            return super().call(inputs)
        outputs = _convolve(inputs, keras.ops.cast(self.kernel, inputs.dtype))
        if self.use_bias:
            outputs += self.bias
        return self.activation(outputs)


def _convolve(x, kernel):
    """Convolution with stride 1 and padding "same", forward and backward, as matrix products of patches.

    Args:
        x: (N, H, W, C), of any floating type.
        kernel: (h, w, C, F) of the same type, h and w odd; H and W are known if it is larger than 1x1.

    Returns:
        (N, H, W, F).
    """
    import tensorflow as tf

    (_, height, width, _), (*size, channels, filters) = x.shape, kernel.shape

    def patches(images):
        if size != [1, 1]:
            images = tf.pad(images, [[0, 0], *([n // 2, n // 2] for n in size), [0, 0]])
            shifted = [images[:, i : i + height, j : j + width] for i in range(size[0]) for j in range(size[1])]
            images = tf.concat(shifted, -1)
        return tf.reshape(images, [-1, images.shape[-1]])

    @tf.custom_gradient
    def convolve(x, kernel):
        rows = patches(x)

        def gradient(upstream):
            to_kernel = tf.matmul(rows, tf.reshape(upstream, [-1, filters]), transpose_a=True)
            flipped = tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])
            to_x = tf.matmul(patches(upstream), tf.reshape(flipped, [-1, channels]))
            return tf.reshape(to_x, tf.shape(x)), tf.reshape(to_kernel, kernel.shape)

        outputs = tf.matmul(rows, tf.reshape(kernel, [-1, filters]))
        outputs = tf.reshape(outputs, [*tf.unstack(tf.shape(x)[:3]), filters])
        return tf.ensure_shape(outputs, [*x.shape[:3], filters]), gradient

    return convolve(x, kernel)


@functools.cache
def fused_sgd():
    """The class of an SGD that steps each variable in one kernel; Keras 3 composes the step of single operations."""
    import tensorflow as tf

    class FusedSGD(keras.optimizers.SGD):
        """Computes what `keras.optimizers.SGD` with momentum computes on TensorFlow."""

        def update_step(self, gradient, variable, learning_rate):
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=variable.handle,
                accum=self.momentums[self._get_variable_index(variable)].value.handle,
                lr=tf.cast(learning_rate, variable.dtype),
                grad=tf.cast(tf.convert_to_tensor(gradient), variable.dtype),
                momentum=tf.cast(self.momentum, variable.dtype),
                use_nesterov=self.nesterov,
            )

    return FusedSGD


@functools.cache
def _fused_batch_normalization():
    import tensorflow as tf

    class FusedBatchNormalization(keras.layers.BatchNormalization):
        """Computes what `keras.layers.BatchNormalization` computes for NHWC images, in one kernel."""

        def call(self, inputs, training=None, mask=None):
            training = bool(training and self.trainable)
            gamma = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones_like(self.moving_mean)
            beta = tf.convert_to_tensor(self.beta) if self.center else tf.zeros_like(self.moving_mean)
            if training and _pixels_abreast(inputs):
                outputs, mean, variance = _normalize_wide(inputs, gamma, beta, self.epsilon)
            else:
                outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                    x=inputs,
                    scale=gamma,
                    offset=beta,
                    mean=[] if training else tf.convert_to_tensor(self.moving_mean),
                    variance=[] if training else tf.convert_to_tensor(self.moving_variance),
                    epsilon=self.epsilon,
                    is_training=training,
                )
                count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], variance.dtype)
                # The kernel returns the unbiased variance; Keras 3 accumulates the biased one.
                variance *= (count - 1) / count
            if training:
                self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))
                self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1 - self.momentum))
            return outputs

    return FusedBatchNormalization


def _pixels_abreast(x):
    """How many pixels side by side `_normalize_wide` takes where the fused kernel is slow; None where that is faster.

    On a CPU, oneDNN has no fast kernel for numbers of channels that do not fill whole blocks, as pruning leaves them:
    its slow one takes 3 to 6 times as long as `_normalize_wide`, which needs an image size that k pixels divide.
    """
    block = 4 if x.dtype == "float32" else 16
    height, width, channels = x.shape[1:]
    if channels % block == 0 or None in (height, width) or _has_gpu():
        return None
    abreast = 16 // math.gcd(channels, 16)
    return abreast if height * width % abreast == 0 else None


def _has_gpu():
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _normalize_wide(x, gamma, beta, epsilon):
    """Batch normalization by batch statistics with the fast kernels, on images whose neighbouring pixels are channels.

    With k pixels of C channels side by side, k C fills whole blocks. The fused kernels give statistics, and the sums of
    the gradient, of each of the k pixels; together they are those of the channels.

    Args:
        x: (N, H, W, C), float32 or bfloat16, where `_pixels_abreast` is not None; the arithmetic is float32.
        gamma, beta: (C,) float32.
        epsilon: added to the variance.

    Returns:
        The outputs, and the mean and the biased variance, each (C,) float32, which have no gradient.
    """
    import tensorflow as tf

    height, width, channels = x.shape[1:]
    abreast = _pixels_abreast(x)
    zeros, ones = tf.zeros([abreast * channels]), tf.ones([abreast * channels])

    def wide(image):
        return tf.reshape(image, [-1, height * width // abreast, 1, abreast * channels])

    def tiled(vector):
        return tf.tile(vector, [abreast])

    def total(vector):
        return tf.reduce_sum(tf.reshape(vector, [abreast, channels]), 0)

    def scaled(image, scale, offset, mean=zeros, variance=ones, epsilon=0.0):
        options = {"mean": mean, "variance": variance, "epsilon": epsilon, "is_training": False}
        return tf.raw_ops.FusedBatchNormV3(x=image, scale=scale, offset=offset, **options)[0]

    @tf.custom_gradient
    def normalize(x, gamma, beta):
        pixels = wide(x)
        _, means, variances, *_ = tf.raw_ops.FusedBatchNormV3(x=pixels, scale=ones, offset=zeros, mean=[], variance=[])
        rows = tf.cast(tf.shape(pixels)[0] * pixels.shape[1], tf.float32)
        count = rows * abreast
        mean = total(means) / abreast
        # The kernel returns the unbiased variances.
        variance = total(variances * (rows - 1) / rows + means**2) / abreast - mean**2
        statistics = {"mean": tiled(mean), "variance": tiled(variance), "epsilon": epsilon}
        outputs = scaled(pixels, tiled(gamma), tiled(beta), **statistics)

        def gradient(upstream, *_):
            to_pixels, to_gamma, to_beta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=wide(upstream),
                x=pixels,
                scale=tiled(gamma),
                reserve_space_1=tiled(mean),
                reserve_space_2=tiled(variance),
                reserve_space_3=[],
                epsilon=epsilon,
                is_training=False,
            )
            to_gamma, to_beta = total(to_gamma), total(to_beta)
            # What the statistics depend on the pixels by: linear in them.
            inverse = tf.math.rsqrt(variance + epsilon)
            slope = gamma * inverse**2 * to_gamma / count
            offset = gamma * inverse * to_beta / count - slope * mean
            to_pixels -= scaled(pixels, tiled(slope), tiled(offset))
            return tf.reshape(to_pixels, tf.shape(x)), to_gamma, to_beta

        return (tf.reshape(outputs, tf.shape(x)), mean, variance), gradient

    outputs, mean, variance = normalize(x, gamma, beta)
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)
